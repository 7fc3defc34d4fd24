"""What OFT, BOFT and HRA have in common beyond the laws: their matrices, dropout, and several adapters at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.boft.config import BOFTConfig
from peftcli.methods.hra.config import HRAConfig
from peftcli.methods.oft.config import OFTConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, Pixels, shake

EXACT = [
    OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=["mid"]),
    BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["mid"]),
    HRAConfig(r=6, target_modules=["mid"]),
    HRAConfig(r=6, apply_GS=True, init_weights=False, target_modules=["mid"]),
]
each = pytest.mark.parametrize("config", EXACT, ids=lambda config: str(config.peft_type))


def adapted(config: PeftConfig, model: nn.Module | None = None) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model((model or Net()).double(), config)
    shake(model)
    return model


def layer_of(model: PeftModel) -> Any:
    return model.get_base_model().mid


@each
def test_the_rotation_is_orthogonal_and_its_transpose_is_one(config: PeftConfig):
    eye = torch.eye(16, dtype=torch.float64)
    rotation = layer_of(adapted(config)).rotation("default", dropout=False)
    matrix = rotation(eye)
    assert (matrix - eye).abs().max() > 0.01
    torch.testing.assert_close(matrix @ matrix.T, eye)
    torch.testing.assert_close(rotation(eye, transposed=True), matrix.T)


@each
def test_an_empty_batch_stays_empty(config: PeftConfig):
    layer = layer_of(adapted(config))
    assert layer(torch.zeros(0, 16, dtype=torch.float64)).shape == (0, 10)


def test_more_terms_of_the_series_come_nearer_to_a_rotation():
    errors = []
    for terms in (2, 4, 6, 8, 12):
        config = OFTConfig(oft_block_size=4, num_cayley_neumann_terms=terms, target_modules=["mid"])
        matrix = layer_of(adapted(config)).rotation("default", dropout=False)(
            torch.eye(16, dtype=torch.float64)
        )
        errors.append(float((matrix @ matrix.T - torch.eye(16)).detach().abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0]


@each
def test_several_adapters_at_once_give_the_same_merged_as_unmerged(config: PeftConfig):
    model = adapted(config)
    model.add_adapter("second", config)
    model.set_adapter("second")
    shake(model, seed=5)
    model.base_model.set_adapter(["default", "second"])
    tokens = torch.arange(16).reshape(2, 8) % 11
    unmerged = model.eval()(tokens)
    model.merge_adapter()
    torch.testing.assert_close(model(tokens), unmerged)


@pytest.mark.parametrize(
    "config",
    [
        OFTConfig(oft_block_size=2, module_dropout=0.5, target_modules=["mid"]),
        OFTConfig(oft_block_size=2, module_dropout=0.5, block_share=True, target_modules=["mid"]),
        BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=2, boft_dropout=0.5, target_modules=["mid"]),
    ],
    ids=["oft", "shared oft", "boft"],
)
def test_dropout_leaves_some_blocks_unrotated_and_only_in_training(config: PeftConfig):
    layer = layer_of(adapted(config)).train()
    x = torch.randn(5, 16, dtype=torch.float64)
    whole, dropped = layer.rotation("default", dropout=False)(x), layer.rotation("default", dropout=True)(x)
    assert not torch.equal(dropped, whole)
    assert not torch.equal(dropped, x)
    merged = layer.merge_tensors(["default"])["weight"]
    torch.testing.assert_close(merged, layer.eval().merge_tensors(["default"])["weight"], rtol=0, atol=0)
    assert torch.equal(layer.rotation("default", dropout=True)(x), whole)


def test_constrained_oft_is_projected_after_each_step_and_used_as_if_it_were_before():
    model = adapted(OFTConfig(oft_block_size=4, coft=True, eps=0.01, target_modules=["mid"]))
    rotation = layer_of(model).oft_R["default"]
    used = rotation()
    assert rotation.weight.norm() > 0.01
    model.base_model.after_step(1)
    torch.testing.assert_close(
        rotation.weight.norm(dim=1), torch.full((4,), 0.01 / 2 / 2**0.5, dtype=torch.float64)
    )
    torch.testing.assert_close(rotation(), used)


def test_rotations_are_made_in_full_precision_under_autocast():
    config = OFTConfig(oft_block_size=16, use_cayley_neumann=True, target_modules=["mid"])
    model = get_peft_model(Net(), config)
    shake(model)
    rotation = layer_of(model).oft_R["default"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rotation(), rotation(), rtol=0, atol=0)
        under = rotation()
    torch.testing.assert_close(under, rotation(), rtol=0, atol=0)


@each
def test_a_convolution_with_groups_is_refused(config: PeftConfig):
    net = Pixels()
    net.point = nn.Conv2d(4, 6, 1, groups=2)
    kind: Any = type(config)
    with pytest.raises(AdapterError, match=r"point is a convolution with groups, which \w+ does not take"):
        get_peft_model(net, kind(target_modules=["point"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 4}, "oft_block_size: must be 0 where r is set"),
        ({"oft_block_size": 0}, "oft_block_size: is 0, and r too"),
        ({"oft_block_size": -4}, "oft_block_size: must be from 0 to"),
        ({"num_cayley_neumann_terms": 1}, "num_cayley_neumann_terms: must be at least 2"),
        ({"bias": "lora_only"}, "bias: 'lora_only' is not one of: none, all, oft_only"),
    ],
)
def test_blocks_that_cannot_be_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(AdapterConfigError, match=message):
        OFTConfig(**values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OFTConfig(r=16, oft_block_size=0), "with r 16 its 16 inputs are blocks of 1"),
        (BOFTConfig(boft_block_size=3), "has 16 inputs, which boft_block_size 3 does not divide"),
        (BOFTConfig(boft_block_size=0, boft_block_num=16), "its blocks are single inputs"),
        (BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=3), "has 2 blocks of 8; .* that 4 divides"),
        (HRAConfig(r=20, apply_GS=True), "has 16 inputs; 20 directions cannot be orthogonal"),
    ],
)
def test_blocks_that_do_not_fit_a_layer_are_refused(config: Any, message: str):
    config.target_modules = ["mid"]
    with pytest.raises(AdapterError, match=message):
        get_peft_model(Net(), config)


def test_a_file_from_before_the_series_is_read_with_a_warning(tmp_path: Path):
    values = {"peft_type": "OFT", "use_cayley_neumann": True, "oft_block_size": 4, "target_modules": ["mid"]}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"was trained with PEFT before 0\.18"):
        PeftConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps(values | {"peft_version": "0.18.0.dev0@abc"}))
    assert PeftConfig.from_pretrained(tmp_path).peft_version == "0.18.0.dev0@abc"
