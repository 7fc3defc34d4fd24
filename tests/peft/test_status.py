"""The state of a model's adapters is told as PEFT tells it."""

from __future__ import annotations

import dataclasses
from typing import Any

import peft
import pytest
from torch import nn

from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import get_peft_model
from peftcli.peft.status import get_layer_status, get_model_status
from tests.methods.cases import llama, net

FIELDS: dict[str, Any] = {
    "r": 2,
    "target_modules": ["q_proj", "embed_tokens"],
    "modules_to_save": ["lm_head"],
}


def models() -> tuple[Any, Any]:
    """Ours and PEFT's, with two adapters."""
    ours = get_peft_model(llama(), LoraConfig(**FIELDS))
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(**FIELDS))
    for model, config in ((ours, LoraConfig), (theirs, peft.LoraConfig)):
        model.add_adapter("other", config(r=2, target_modules=["q_proj", "k_proj"]))
    return ours, theirs


def told(status: Any) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(status).items() if key != "adapter_model_type"}


def do_nothing(model: Any) -> None:
    pass


def set_other(model: Any) -> None:
    model.set_adapter("other")


def set_both(model: Any) -> None:
    model.base_model.set_adapter(["default", "other"])


def freeze(model: Any) -> None:
    model.set_requires_grad("default", False)


def freeze_partly(model: Any) -> None:
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].requires_grad_(False)


def switch_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def switch_off_one(model: Any) -> None:
    model.base_model.model.model.layers[0].self_attn.q_proj.enable_adapters(False)


def merge(model: Any) -> None:
    model.merge_adapter()


def merge_one(model: Any) -> None:
    model.base_model.model.model.layers[0].self_attn.q_proj.merge()


STATES = [
    do_nothing, set_other, set_both, freeze, freeze_partly, switch_off, switch_off_one, merge, merge_one,
]  # fmt: skip


@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_every_field_is_peft_s(change: Any):
    ours, theirs = models()
    for model in (ours, theirs):
        change(model)
    assert told(ours.get_model_status()) == told(theirs.get_model_status())
    mine, other = ours.get_layer_status(), theirs.get_layer_status()
    assert [status.name for status in mine] == [status.name for status in other]
    for one, two in zip(mine, other, strict=True):
        assert told(one) == told(two)


def test_a_model_with_adapters_injected_is_told_as_well():
    config = LoraConfig(r=2, target_modules=["mid"])
    ours = inject_adapter_in_model(config, net())
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["mid"]), net())
    assert told(get_model_status(ours)) == told(peft.get_model_status(theirs))
    assert told(get_layer_status(ours)[0]) == told(peft.get_layer_status(theirs)[0])


def test_a_model_without_adapters_is_refused():
    with pytest.raises(AdapterError, match="no layer of the model holds an adapter"):
        get_layer_status(nn.Linear(2, 2))


def test_weights_without_memory_are_told():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]), low_cpu_mem_usage=True)
    assert model.get_model_status().devices == {"default": ["meta"]}
