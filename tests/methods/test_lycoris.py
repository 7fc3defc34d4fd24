"""LoHa and LoKr: their dropout, quantities that only some shapes have, and values that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lokr.layer import factorization
from torch import nn

from peftcli.errors import PeftError
from peftcli.methods.lokr.layer import factorized
from peftcli.peft.model import get_peft_model
from peftcli.registry import METHODS, resolve
from tests.methods.cases import gpt2, shake

both = pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])


class One(nn.Module):
    """One layer, so that what dropout leaves of an adapter can be seen."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def config(peft_type: str, **fields: Any) -> Any:
    return resolve(METHODS, peft_type, what="peft_type")(**{"r": 2, "target_modules": ["layer"], **fields})


def adapted(peft_type: str, layer: nn.Module, **fields: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(One(layer.double()), config(peft_type, **fields))
    shake(model)
    return model


def share_of_rows(model: Any) -> torch.Tensor:
    """What training makes of each row of the update, as a multiple of the row."""
    x = torch.eye(8, dtype=torch.float64)
    with model.disable_adapter():
        base = model(x)
    whole = model.eval()(x) - base
    part = model.train()(x) - base
    return (part / whole).mean(0)


@both
def test_rank_dropout_zeroes_rows_and_only_where_it_scales_makes_up_for_them(peft_type: str):
    share = share_of_rows(adapted(peft_type, nn.Linear(8, 64), rank_dropout=0.5))
    kept = (share != 0).double().mean()
    assert 0.2 < kept < 0.8
    expected = 1 / kept if peft_type == "LOHA" else torch.ones_like(kept)
    torch.testing.assert_close(share[share != 0], expected.expand(int(kept * 64 + 0.5)))


def test_rank_dropout_of_lokr_scales_where_it_is_asked_to():
    share = share_of_rows(adapted("LOKR", nn.Linear(8, 64), rank_dropout=0.5, rank_dropout_scale=True))
    torch.testing.assert_close(share.mean(), torch.ones((), dtype=torch.float64))


@both
def test_where_all_rows_are_dropped_the_base_is_left_and_gradients_are_finite(peft_type: str):
    scaled = {"rank_dropout_scale": True} if peft_type == "LOKR" else {}
    model = adapted(peft_type, nn.Linear(8, 2), rank_dropout=0.999, **scaled).train()
    x = torch.randn(3, 8, dtype=torch.float64)
    with model.disable_adapter():
        base = model(x)
    result = model(x)
    assert torch.equal(result, base)
    result.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


@both
def test_module_dropout_leaves_the_whole_update_in_or_out_and_every_weight_its_gradient(peft_type: str):
    model = adapted(peft_type, nn.Linear(8, 6), module_dropout=0.5).train()
    x = torch.randn(3, 8, dtype=torch.float64)
    with model.disable_adapter():
        base = model(x)
    whole = model.eval()(x)
    model.train()
    seen = set()
    for _ in range(30):
        result = model(x)
        seen.add((torch.equal(result, base), torch.allclose(result, whole)))
        model.zero_grad()
        result.sum().backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert seen == {(True, False), (False, True)}


@both
def test_a_layer_s_scale_multiplies_what_its_active_adapters_add(peft_type: str):
    model = adapted(peft_type, nn.Linear(8, 6), alpha=3)
    layer = model.base_model.model.layer
    whole = layer.get_delta_weight("default")
    layer.scale_layer(2)
    torch.testing.assert_close(layer.get_delta_weight("default"), 2 * whole)
    layer.unscale_layer(4)
    torch.testing.assert_close(layer.get_delta_weight("default"), whole / 2)
    layer.unscale_layer()
    assert torch.equal(layer.get_delta_weight("default"), whole)
    layer.set_scale("default", 5)
    layer.set_scale("another", 5)
    assert layer.scaling == {"default": 5 * 3 / 2}


@both
@pytest.mark.parametrize("cores", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_a_grouped_convolution_of_any_padding_gives_the_same_when_merged(
    peft_type: str, cores: bool, mode: str
):
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode=mode)
    model = adapted(peft_type, layer, r=1, use_effective_conv2d=cores).eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


def test_a_whole_kernel_of_one_dimension_is_the_kronecker_product_at_each_place():
    model = adapted("LOKR", nn.Conv1d(6, 8, 3), r=8)
    layer = model.base_model.model.layer
    w1, w2 = layer.lokr_w1["default"], layer.lokr_w2["default"]
    for place, delta in enumerate(layer.get_delta_weight("default").unbind(2)):
        torch.testing.assert_close(delta, torch.kron(w1, w2[:, :, place]) * layer.scaling["default"])


def test_sizes_are_factorized_as_peft_does():
    for size in range(1, 200):
        for factor in (-1, *range(1, 20)):
            assert factorized(size, factor) == factorization(size, factor)


@both
def test_a_transposed_linear_layer_is_refused(peft_type: str):
    with pytest.raises(PeftError, match=f"Conv1D; {peft_type} takes Linear, Conv2d, Conv1d"):
        get_peft_model(gpt2(), config(peft_type, target_modules=["c_attn"]))


@pytest.mark.parametrize(
    ("peft_type", "fields", "message"),
    [
        ("LOHA", {"r": 0}, "r: must be from 1"),
        ("LOHA", {"alpha": 0}, "alpha: must be a finite number above 0"),
        ("LOHA", {"rank_dropout": 1.0}, "rank_dropout: must be at least 0 and below 1"),
        ("LOHA", {"init_weights": "lycoris"}, "init_weights: must be true or false"),
        ("LOKR", {"decompose_factor": 0}, "decompose_factor: must be -1, or at least 1, not 0"),
        ("LOKR", {"init_weights": "loha"}, "init_weights: must be true, false or lycoris"),
        ("LOKR", {"module_dropout": -0.1}, "module_dropout: must be at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(peft_type: str, fields: dict[str, Any], message: str):
    with pytest.raises(PeftError, match=message):
        get_peft_model(One(nn.Linear(8, 8)), config(peft_type, **fields))


@both
def test_a_pattern_that_names_nothing_is_refused(peft_type: str):
    with pytest.raises(
        PeftError, match="rank_pattern: 'leyer' matches no adapted module; the nearest: layer"
    ):
        get_peft_model(One(nn.Linear(8, 8)), config(peft_type, rank_pattern={"leyer": 3}))
