"""MiSS: what its blocks are, several adapters on one layer, its dropout, and values that cannot be."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from peftcli.errors import PeftError
from peftcli.methods.miss.config import MissConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, shake

KINDS: list[dict[str, Any]] = [
    {"r": 4},
    {"r": 5},
    {"r": 4, "mini_r": 5, "init_weights": "mini"},
    {"r": 2, "init_weights": "bat"},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["one matrix", "cut", "mini", "bat"])


def config(**fields: Any) -> MissConfig:
    return MissConfig(**{"target_modules": ["mid"], **fields})


def adapted(**fields: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(Net().double(), config(**fields))
    shake(model)
    return model


def layer_of(model: Any) -> Any:
    return model.get_base_model().mid


def inputs() -> torch.Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_each_block_of_inputs_has_the_same_matrix():
    layer = layer_of(adapted(r=5))
    block = layer.miss_block["default"].T
    expected = torch.cat([block, block, block, block[:, :1]], 1)
    assert torch.equal(layer.get_delta_weight("default"), expected)


def test_mini_repeats_its_outputs():
    layer = layer_of(adapted(r=4, mini_r=5, init_weights="mini"))
    assert layer.miss_block["default"].shape == (4, 5)
    upper, lower = layer.get_delta_weight("default").chunk(2)
    assert torch.equal(upper, lower)


def test_bat_adds_to_each_square_of_the_weight_its_product_with_a_matrix_and_the_matrix():
    layer = layer_of(adapted(r=2, init_weights="bat"))
    delta = layer.get_delta_weight("default")
    for row, block in enumerate(layer.miss_block["default"]):
        for column in range(8):
            square = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            torch.testing.assert_close(delta[square], layer.weight[square] @ block + block)


@kinds
@pytest.mark.parametrize("other", KINDS, ids=["one matrix", "cut", "mini", "bat"])
def test_two_adapters_at_once_are_merged_one_after_the_other(kind: dict[str, Any], other: dict[str, Any]):
    model = adapted(**kind)
    model.add_adapter("second", config(**other))
    model.base_model.set_adapter(["default", "second"])
    shake(model)
    layer, x = layer_of(model), inputs()
    expected = layer(x)
    assert not torch.allclose(expected, layer.base_layer(x))
    model.merge_adapter()
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_two_bat_adapters_at_once_give_what_they_give_in_peft():
    models: list[Any] = []
    for make, kind in ((get_peft_model, MissConfig), (peft.get_peft_model, peft.MissConfig)):
        fields: dict[str, Any] = {"target_modules": ["mid"], "r": 2, "init_weights": "bat"}
        torch.manual_seed(0)
        model: Any = make(Net().double(), kind(**fields))
        model.add_adapter("second", kind(**fields))
        model.base_model.set_adapter(["default", "second"])
        shake(model)
        models.append(model)
    mine, theirs = (layer_of(model)(inputs()) for model in models)
    torch.testing.assert_close(mine, theirs)


@kinds
def test_dropout_acts_on_the_inputs_of_the_adapter_in_training_only(kind: dict[str, Any]):
    layer = layer_of(adapted(miss_dropout=0.5, **kind))
    x = torch.ones(1, 16, dtype=torch.float64)
    base = layer.base_layer(x)
    whole = layer.eval()(x) - base
    torch.manual_seed(0)
    parts = layer.train()(x.expand(4000, -1)) - base
    assert len(parts.unique(dim=0)) > 100
    torch.testing.assert_close(parts.mean(0, keepdim=True), whole, rtol=0.1, atol=0.05)


@kinds
def test_an_empty_batch_stays_empty_and_one_row_may_stand_alone(kind: dict[str, Any]):
    layer, x = layer_of(adapted(**kind)), inputs()
    assert layer(x[:0]).shape == (0, 10)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_bat_keeps_no_copy_of_a_half_precision_weight_for_the_gradient_of_its_matrices():
    model = get_peft_model(Net().bfloat16(), config(r=2, init_weights="bat"))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        layer = layer_of(model)
        layer(inputs().bfloat16())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not [tensor for tensor in kept if tensor.numel() == 160 and tensor.data_ptr() not in own]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r: must be from 1"),
        ({"r": 17}, "mid has 16 inputs and 10 outputs; r 17 is more than its inputs: lower it"),
        ({"r": 4, "init_weights": "bat"}, "with init_weights bat r must divide both, which 4 does not"),
        (
            {"r": 4, "init_weights": "mini", "mini_r": 3},
            "mini_r must divide its outputs, which 3 does not",
        ),
        ({"mini_r": 0}, "mini_r: must be at least 1, not 0"),
        ({"miss_dropout": 1}, "miss_dropout: must be at least 0 and below 1"),
        ({"bias": "miss_only"}, "bias: 'miss_only' is not one of: none, all, MiSS_only"),
        ({"init_weights": "balance"}, "init_weights: must be true, false, bat or mini, not 'balance'"),
        ({"target_modules": ["conv1"], "r": 2}, "conv1 is a Conv1d; MISS takes Linear, Conv1D"),
    ],
)
def test_values_that_cannot_be_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(PeftError, match=message):
        get_peft_model(Net(), config(**fields))


def test_a_mini_r_that_has_no_effect_is_said():
    with pytest.warns(UserWarning, match="mini_r 5 has no effect without init_weights: mini"):
        get_peft_model(Net(), config(r=4, mini_r=5))
