"""Adapters of several methods in one model: their layers lie around one another, and merge exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftMixedModel, PeftModel, get_peft_model
from peftcli.registry import METHODS, resolve
from tests.methods.cases import Net, shake

TOKENS = torch.arange(16).reshape(2, 8) % 11
# Each on the same layer, so that one lies around the other.
CONFIGS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2},
    "IA3": {"feedforward_modules": []},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "ADALORA": {"init_r": 2, "target_r": 1},
    "OFT": {"oft_block_size": 4, "r": 0},
    "BOFT": {"boft_block_size": 2},
    "HRA": {"r": 2},
    "SHIRA": {"r": 1},
    "VERA": {"r": 2},
}
HERE = [name for name in CONFIGS if name in METHODS]
PAIRS = [(one, other) for one, other in itertools.permutations(HERE, 2) if "LORA" in (one, other)]


def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def config(peft_type: str, **more: Any) -> Any:
    return resolve(METHODS, peft_type, what="peft_type")(target_modules=["mid"], **CONFIGS[peft_type], **more)


def mixed(*peft_types: str) -> PeftModel:
    """Adapters named by their methods, all active."""
    first, *others = peft_types
    model = get_peft_model(net(), config(first), first.lower(), mixed=True)
    for name in others:
        model.add_adapter(name.lower(), config(name))
    model.set_adapter([name.lower() for name in peft_types])
    shake(model)
    return model.eval()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_methods_act_together_and_merge_exactly(pair: tuple[str, str]):
    model = mixed(*pair)
    assert isinstance(model, PeftMixedModel)
    both = model(TOKENS)
    weight = model.get_base_model().mid.get_base_layer().weight.clone()
    alone = []
    for name in pair:
        model.set_adapter(name.lower())
        alone.append(model(TOKENS))
        assert not torch.allclose(alone[-1], both)
    assert not torch.allclose(alone[0], alone[1])
    model.set_adapter([name.lower() for name in pair])
    model.merge_adapter()
    torch.testing.assert_close(model(TOKENS), both, rtol=1e-9, atol=1e-10)
    model.unmerge_adapter()
    assert torch.equal(model(TOKENS), both)
    assert torch.equal(model.get_base_model().mid.get_base_layer().weight, weight)
    with model.disable_adapter():
        assert torch.equal(model(TOKENS), net()(TOKENS))
    torch.testing.assert_close(model.merge_and_unload()(TOKENS), both, rtol=1e-9, atol=1e-10)


def test_a_method_may_come_back_around_another():
    model = get_peft_model(net(), config("LORA"), "first", mixed=True)
    model.add_adapter("between", config("IA3"))
    model.add_adapter("last", config("LORA"))
    model.set_adapter(["first", "between", "last"])
    shake(model)
    together = model(TOKENS)
    model.merge_adapter(["first"])
    torch.testing.assert_close(model(TOKENS), together)
    model.merge_adapter()
    torch.testing.assert_close(model(TOKENS), together)
    plain = model.unload()
    assert torch.equal(plain(TOKENS), net()(TOKENS))


def test_what_lies_within_is_merged_first_or_the_merge_is_refused():
    model = mixed("LORA", "IA3")
    with pytest.raises(AdapterError, match="mid: lora lies within the adapters to merge"):
        model.merge_adapter(["ia3"])
    together = model(TOKENS)
    model.merge_adapter(["lora"])
    torch.testing.assert_close(model(TOKENS), together)


def test_each_adapter_is_saved_and_loaded_by_itself(tmp_path: Path):
    model = mixed("LORA", "IA3")
    model.save_pretrained(tmp_path)
    for name in ("lora", "ia3"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(net(), tmp_path / name)
        assert torch.equal(alone(TOKENS), model(TOKENS))
        assert type(alone) is PeftModel
    loaded = PeftMixedModel.from_pretrained(net(), tmp_path / "lora", "lora")
    loaded.load_adapter(tmp_path / "ia3", "ia3")
    loaded.set_adapter(["lora", "ia3"])
    model.set_adapter(["lora", "ia3"])
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_adapters_of_one_model_of_peft_s_give_the_same(tmp_path: Path):
    model = mixed("LORA", "OFT")
    model.save_pretrained(tmp_path)
    theirs = peft.PeftMixedModel.from_pretrained(net(), str(tmp_path / "lora"), "lora")
    theirs.load_adapter(str(tmp_path / "oft"), "oft")
    theirs.set_adapter(["lora", "oft"])
    torch.testing.assert_close(theirs.eval()(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_deleting_one_leaves_the_others():
    model = mixed("LORA", "IA3")
    model.set_adapter("lora")
    alone = model(TOKENS)
    model.delete_adapter("ia3")
    assert list(model.peft_config) == ["lora"]
    assert torch.equal(model(TOKENS), alone)
    assert [status.available_adapters for status in model.get_layer_status()] == [[], ["lora"]]


def test_methods_are_mixed_only_where_that_was_asked_for():
    model = get_peft_model(net(), config("LORA"))
    with pytest.raises(AdapterError, match="cannot join them"):
        model.add_adapter("other", config("IA3"))


def test_what_reads_the_base_s_own_weight_cannot_lie_around_others():
    model = get_peft_model(net(), config("IA3"), mixed=True)
    with pytest.raises(AdapterError, match="mid: use_dora reads the base's weight; add it before the others"):
        model.add_adapter("dora", LoraConfig(target_modules=["mid"], use_dora=True))
    with pytest.raises(AdapterError, match="mid: init_lora_weights 'pissa' reads"):
        model.add_adapter("pissa", LoraConfig(target_modules=["mid"], init_lora_weights="pissa"))
