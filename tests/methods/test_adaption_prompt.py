"""LLaMA-adapter: the laws of a method on layers, but for merging; and what PEFT's makes of the same files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, MistralConfig, MistralForCausalLM

from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.adaption_prompt.config import AdaptionPromptConfig
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import get_peft_model_state_dict, load_peft_weights
from tests.methods.cases import SIZES, gpt2, llama, outputs, shake

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
INPUTS = {"input_ids": TOKENS}


def mistral() -> nn.Module:
    return MistralForCausalLM(
        MistralConfig(**SIZES, hidden_size=8, intermediate_size=12, num_key_value_heads=1)
    )


def wide_llama() -> nn.Module:
    """Heads have other sizes than the hidden state divided among them."""
    return llama(head_dim=6, num_key_value_heads=2)


def build(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(7)
    return make().to(dtype).eval()


def config(**changes: Any) -> AdaptionPromptConfig:
    return AdaptionPromptConfig(**{"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": 1} | changes)


def trained(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **changes) -> PeftModel:
    torch.manual_seed(11)
    model = get_peft_model(build(make, dtype), config(**changes))
    shake(model)
    return model


every = pytest.mark.parametrize("make", [llama, mistral, gpt2, wide_llama])
# PEFT takes the ratio of a layer's inputs to its outputs for that of the heads.
known = pytest.mark.parametrize("make", [llama, mistral, gpt2])


@every
def test_a_fresh_adapter_changes_nothing_and_training_moves_its_weights_and_no_other(make):
    base, model = build(make), get_peft_model(build(make), config(adapter_layers=2))
    torch.testing.assert_close(outputs(model, INPUTS), outputs(base, INPUTS), rtol=0, atol=1e-12)
    shake(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = {tensor.data_ptr() for tensor in get_peft_model_state_dict(model).values()}
    assert len(saved) == 4
    model(**INPUTS).logits.pow(2).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (tensor.data_ptr() not in saved), name


@every
def test_saving_loading_switching_off_and_unloading(make, tmp_path: Path):
    base, model = build(make), trained(make)
    given = outputs(model, INPUTS)
    assert not torch.allclose(given, outputs(base, INPUTS))
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(PeftModel.from_pretrained(build(make), tmp_path), INPUTS), given)
    with model.disable_adapter():
        assert torch.equal(outputs(model, INPUTS), outputs(base, INPUTS))
    assert torch.equal(outputs(copy.deepcopy(model), INPUTS), given)
    with pytest.raises(AdapterError, match="cannot be merged"):
        model.merge_adapter()
    plain = model.unload()
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(outputs(plain, INPUTS), outputs(base, INPUTS))


@every
def test_a_second_adapter_stands_beside_the_first(make):
    model = trained(make)
    first = outputs(model, INPUTS)
    model.add_adapter("second", config(adapter_layers=2, adapter_len=5))
    assert torch.equal(outputs(model, INPUTS), first)
    model.set_adapter("second")
    shake(model, seed=4)
    assert not torch.equal(outputs(model, INPUTS), first)
    model.set_adapter("default")
    assert torch.equal(outputs(model, INPUTS), first)
    model.delete_adapter("second")
    assert torch.equal(outputs(model, INPUTS), first)


@every
def test_generating_with_a_cache_is_the_forward_pass_step_by_step(make):
    model = trained(make).eval()
    model.generation_config.eos_token_id = None
    made = model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    ids = TOKENS
    for _ in range(4):
        ids = torch.cat([ids, outputs(model, {"input_ids": ids})[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, ids)


@every
def test_a_half_precision_base_has_its_adapter_in_float32(make):
    model = get_peft_model(build(make, torch.bfloat16), config())
    tensors = get_peft_model_state_dict(model)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    result = model(**INPUTS).logits
    assert result.dtype == torch.bfloat16
    result.float().pow(2).sum().backward()


def theirs(make, dtype: torch.dtype = torch.float32) -> Any:
    fields = {"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": 1}
    return peft.get_peft_model(build(make, dtype), peft.AdaptionPromptConfig(**fields))


@known
def test_peft_and_ours_read_one_another_s_files_and_give_the_same(make, tmp_path: Path):
    mine = trained(make, torch.float32)
    mine.save_pretrained(tmp_path / "ours")
    read = peft.PeftModel.from_pretrained(build(make, torch.float32), tmp_path / "ours")
    torch.testing.assert_close(outputs(read, INPUTS), outputs(mine, INPUTS), rtol=0, atol=1e-6)
    other = theirs(make)
    shake(other)
    other.save_pretrained(tmp_path / "theirs")
    loaded = PeftModel.from_pretrained(build(make, torch.float32), tmp_path / "theirs")
    torch.testing.assert_close(outputs(loaded, INPUTS), outputs(other, INPUTS), rtol=0, atol=1e-6)
    one, two = (
        {key: tensor.shape for key, tensor in load_peft_weights(tmp_path / side).items()}
        for side in ("ours", "theirs")
    )
    assert one == two
    one, two = (
        json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")
    )
    assert one == {key: two[key] for key in one}


@known
def test_parameters_have_peft_s_names_with_the_adapter_s_behind(make):
    names = {name.removesuffix(".default"): p.shape for name, p in trained(make).named_parameters()}
    assert names == {name: parameter.shape for name, parameter in theirs(make).named_parameters()}


def test_what_cannot_be_is_said():
    with pytest.raises(AdapterError, match="adapter_layers is 3, and 2 layers have a 'self_attn'"):
        get_peft_model(llama(), config(adapter_layers=3))
    bert = BertModel(BertConfig(**SIZES, hidden_size=8, intermediate_size=12))
    with pytest.raises(AdapterError, match="knows the attention of llama, mistral, gpt2, and not of bert"):
        get_peft_model(bert, config(task_type=None))
    with pytest.raises(AdapterError, match="takes LlamaAttention, MistralAttention, GPT2Attention"):
        get_peft_model(llama(), config(target_modules="mlp"))
    with pytest.raises(AdapterConfigError, match="adapter_len: must be a whole number, not null"):
        AdaptionPromptConfig(adapter_layers=1)
