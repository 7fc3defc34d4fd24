"""States in and out: an adapter's and its base's, with PEFT's arguments; loading without copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterError, PeftWarning
from peftcli.methods.ia3.config import IA3Config
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.base_state import get_base_model_state_dict, set_base_model_state_dict
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import (
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from tests.methods.cases import shake

TOKENS = torch.tensor([[1, 2, 3]])
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def base(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **SIZES | changes)).eval()


def config(kind: Any = LoraConfig, **changes: Any) -> Any:
    fields = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"}
    return kind(**fields | changes)


def adapted(**changes: Any) -> PeftModel:
    model = get_peft_model(base(), config(**changes)).eval()
    shake(model)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# An adapter's state.


def test_a_state_is_taken_from_the_whole_model_s_state_where_that_is_given():
    model = adapted()
    whole = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    taken = get_peft_model_state_dict(model, whole)
    assert taken.keys() == get_peft_model_state_dict(model).keys()
    for key, tensor in get_peft_model_state_dict(model).items():
        assert torch.equal(taken[key], tensor + 1)
    with pytest.raises(AdapterError, match=r"state_dict has no .*lora_A\.default"):
        get_peft_model_state_dict(model, {})


def test_saving_takes_a_whole_state_as_a_sharded_trainer_gives_it(tmp_path: Path):
    model = adapted()
    model.save_pretrained(tmp_path, state_dict={key: 2 * value for key, value in model.state_dict().items()})
    assert torch.equal(load_peft_weights(tmp_path)[KEY], 2 * get_peft_model_state_dict(model)[KEY])


def test_a_compiled_model_is_unwrapped():
    model = adapted()
    compiled = torch.compile(model, backend="eager")
    assert get_peft_model_state_dict(compiled, unwrap_compiled=True).keys() == (
        get_peft_model_state_dict(model).keys()
    )


def test_our_state_goes_into_peft_s_model_and_back():
    ours, theirs = adapted(), peft.get_peft_model(base(), config(peft.LoraConfig))
    shake(theirs, seed=8)
    peft.set_peft_model_state_dict(theirs, get_peft_model_state_dict(ours))
    torch.testing.assert_close(theirs.eval()(TOKENS).logits, ours(TOKENS).logits)
    shake(theirs, seed=9)
    assert set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs)) == ([], [])
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS).logits)


def test_tensors_of_another_shape_are_left_out_where_that_is_asked_for(folder: Path):
    state = load_file(folder / "adapter_model.safetensors")
    state[KEY] = torch.ones(3, 16)
    save_file(state, folder / "adapter_model.safetensors")
    model = get_peft_model(base(), config())
    before = get_peft_model_state_dict(model)[KEY].clone()
    with pytest.warns(PeftWarning, match="another shape.*left as it is"):
        assert set_peft_model_state_dict(model, state, ignore_mismatched_sizes=True) == ([KEY], [])
    after = get_peft_model_state_dict(model)
    assert torch.equal(after[KEY], before)
    other = KEY.replace("lora_A", "lora_B")
    assert torch.equal(after[other], state[other])
    with pytest.warns(PeftWarning, match="another shape"):
        PeftModel.from_pretrained(base(), folder, ignore_mismatched_sizes=True)
    with pytest.raises(AdapterError, match="another shape"):
        PeftModel.from_pretrained(base(), folder)


def test_keys_are_renamed_on_loading_as_peft_renames_them(folder: Path):
    state = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key.replace("model.layers", "decoder.blocks"): tensor for key, tensor in state.items()},
        folder / "adapter_model.safetensors",
    )
    mapping = {r"^decoder\.blocks": "model.layers", r"^no such": ""}
    ours = PeftModel.from_pretrained(base(), folder, key_mapping=mapping)
    theirs = peft.PeftModel.from_pretrained(base(), folder, key_mapping=mapping)
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits)
    assert torch.equal(get_peft_model_state_dict(ours)[KEY], state[KEY])


# Without copies.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_without_copies_gives_the_same(folder: Path, dtype: torch.dtype):
    plain = PeftModel.from_pretrained(base().to(dtype), folder)
    quick = PeftModel.from_pretrained(base().to(dtype), folder, low_cpu_mem_usage=True)
    assert torch.equal(quick(TOKENS).logits, plain(TOKENS).logits)
    told = [(name, p.dtype, p.device, p.requires_grad) for name, p in plain.named_parameters()]
    assert told == [(name, p.dtype, p.device, p.requires_grad) for name, p in quick.named_parameters()]
    quick.load_adapter(folder, "other", low_cpu_mem_usage=True, is_trainable=True)
    quick.set_adapter("other")
    torch.testing.assert_close(quick(TOKENS).logits, plain(TOKENS).logits)
    quick.train()(TOKENS).logits.sum().backward()
    trained = [p for name, p in quick.named_parameters() if ".other." in name]
    assert all(p.grad is not None for p in trained)


def test_loading_without_copies_uses_the_file_s_tensors(folder: Path):
    state = load_peft_weights(folder)
    model = get_peft_model(base(), config(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    assert get_peft_model_state_dict(model)[KEY].data_ptr() == state[KEY].data_ptr()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LoraConfig, {"r": 2}),
        (LoraConfig, {"r": 2, "use_dora": True}),
        (LoraConfig, {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
        (IA3Config, {"feedforward_modules": []}),
    ],
)
def test_an_adapter_without_memory_gets_it_with_its_weights(kind: Any, fields: dict[str, Any]):
    made = kind(**{"target_modules": ["q_proj"]} | fields)
    full = get_peft_model(base(), made)
    shake(full)
    model = get_peft_model(base(), made, low_cpu_mem_usage=True)
    model.add_adapter("other", made, low_cpu_mem_usage=True)
    assert all(
        tensor.is_meta
        for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    )
    trained = [(name, p.requires_grad) for name, p in full.named_parameters()]
    for name in ("default", "other"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(full), name, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in model.parameters())
    model.delete_adapter("other")
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == trained
    torch.testing.assert_close(model(TOKENS).logits, full(TOKENS).logits)


# Injected adapters.


# PEFT says that the state names other layers than the config, which is the point.
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_the_keys_of_a_state_say_which_layers_to_adapt():
    state = get_peft_model_state_dict(
        adapted(target_modules=["q_proj", "down_proj"], layers_to_transform=[1], modules_to_save=None)
    )
    bare = LoraConfig(r=2, target_modules=["k_proj"])
    model = inject_adapter_in_model(bare, base(), state_dict=state, low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    short = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["k_proj"]), base(), state_dict=short
    )
    peft.set_peft_model_state_dict(theirs, short)
    torch.testing.assert_close(model(TOKENS).logits, theirs.eval()(TOKENS).logits)
    with pytest.raises(AdapterError, match="another method's"):
        inject_adapter_in_model(bare, base(), state_dict={"x.ia3_l": torch.ones(1)})


def test_a_second_adapter_joins_the_first_in_the_model():
    model = inject_adapter_in_model(config(modules_to_save=None), base())
    inject_adapter_in_model(config(r=3, modules_to_save=None), model, "other")
    assert list(model.peft_config) == ["default", "other"]
    assert {".".join(name.split(".")[-2:-1]) for name, _ in model.named_parameters() if "lora_A" in name} == {
        "default",
        "other",
    }
    with pytest.raises(AdapterError, match="already"):
        inject_adapter_in_model(config(), model, "other")
    with pytest.raises(AdapterError, match="cannot join them"):
        inject_adapter_in_model(IA3Config(target_modules=["q_proj"], feedforward_modules=[]), model, "third")


# The base's state.


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_the_base_s_state_has_the_keys_that_it_has_without_adapters(tied: bool):
    bare = base(tie_word_embeddings=tied)
    plain = {key: tensor.clone() for key, tensor in bare.state_dict().items()}
    targets = ["q_proj", "embed_tokens"] if not tied else ["q_proj"]
    model = get_peft_model(bare, config(target_modules=targets))
    model.add_adapter("other", LoraConfig(target_modules=["k_proj"], use_dora=True))
    state = get_base_model_state_dict(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[key], plain[key]) for key in plain)
    theirs = peft.get_peft_model(
        base(tie_word_embeddings=tied), config(peft.LoraConfig, target_modules=targets)
    )
    assert state.keys() == peft.get_base_model_state_dict(theirs).keys()


def test_the_base_s_state_is_set_under_the_adapters():
    model = adapted()
    before = get_peft_model_state_dict(model)[KEY].clone()
    doubled = {key: 2 * tensor for key, tensor in get_base_model_state_dict(model).items()}
    assert set_base_model_state_dict(model, doubled) == ([], [])
    assert all(torch.equal(doubled[key], tensor) for key, tensor in get_base_model_state_dict(model).items())
    assert torch.equal(get_peft_model_state_dict(model)[KEY], before)
    missing = doubled.pop("model.norm.weight")
    doubled["model.nrm.weight"] = missing
    with pytest.raises(AdapterError, match=r"misses model\.norm\.weight; .* model\.nrm\.weight"):
        set_base_model_state_dict(model, doubled)
    assert set_base_model_state_dict(model, doubled, strict=False) == (
        ["model.norm.weight"],
        ["model.nrm.weight"],
    )


def test_a_module_that_is_called_as_ours_are_keeps_its_name():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(2, 2)
            self.mid = nn.Linear(2, 2)

    model = get_peft_model(Named(), LoraConfig(target_modules=["mid"]))
    assert get_base_model_state_dict(model).keys() == Named().state_dict().keys()
