"""What is LoRA's own: several adapters at once, and the fused path, which must not be told from the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, shake


def adapted(**config: Any) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(Net().double(), LoraConfig(r=2, target_modules=["mid"], **config))
    shake(model)
    return model


def layer_of(model: PeftModel) -> Any:
    return model.get_base_model().mid


@pytest.mark.parametrize("order", [["default", "dora"], ["dora", "default"]])
def test_a_plain_and_a_dora_adapter_together_give_the_same_merged_as_unmerged(order: list[str]):
    model = adapted()
    model.add_adapter("dora", LoraConfig(r=2, target_modules=["mid"], use_dora=True))
    model.set_adapter("dora")
    shake(model, seed=5)
    model.base_model.set_adapter(order)
    tokens = torch.arange(16).reshape(2, 8) % 11
    unmerged = model.eval()(tokens)
    model.merge_adapter()
    torch.testing.assert_close(model(tokens), unmerged)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_hooks_on_the_parts_of_a_layer_are_called(kind: str, part: str):
    layer = layer_of(adapted())
    module = layer.base_layer if part == "base_layer" else getattr(layer, part)["default"]
    called: list[str] = []
    getattr(module, f"register_{kind}_hook")(lambda *arguments: called.append(kind))
    layer(torch.randn(3, 16, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert called == [kind]


def test_a_base_layer_whose_forward_was_replaced_is_called_so():
    layer = layer_of(adapted())
    layer.base_layer.forward = lambda x: torch.zeros(len(x), 10, dtype=x.dtype)
    x = torch.randn(3, 16, dtype=torch.float64)
    update = layer.update("default", x) * layer.scaling["default"]
    torch.testing.assert_close(layer(x), update)


# PyTorch's own: it scripts a formula when a forward-mode derivative is first taken.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_transforms_of_torch_func_see_through_the_layer():
    layer = layer_of(adapted())
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    _, slope = torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(slope, layer(x) - layer.base_layer.bias)


def test_relu_in_place_may_follow_an_adapted_layer():
    layer = layer_of(adapted())
    x = torch.randn(3, 16, dtype=torch.float64)
    changed = nn.Sequential(layer, nn.ReLU(inplace=True))(x)
    torch.testing.assert_close(changed, layer(x).relu())
    changed.sum().backward()
