"""Adapters of other methods as LoRA adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterError
from peftcli.peft.convert import convert_to_lora, save_as_lora
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.registry import METHODS, resolve
from tests.methods.cases import Net, gpt2, shake

TOKENS = torch.tensor([[1, 2, 3]])
CASES: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3},
    "LOHA": {"r": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "IA3": {"feedforward_modules": ["q_proj", "down_proj"]},
    "SHIRA": {"r": 1},
}
HERE = [name for name in CASES if name in METHODS]


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **sizes)).eval()


def adapted(peft_type: str, **more: Any) -> PeftModel:
    fields = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | CASES[peft_type] | more
    model = get_peft_model(base(), resolve(METHODS, peft_type, what="peft_type")(**fields))
    shake(model)
    return model.eval()


@pytest.mark.parametrize("peft_type", HERE)
def test_at_full_rank_the_lora_adapter_does_the_same(peft_type: str, tmp_path: Path):
    model = adapted(peft_type, modules_to_save=["lm_head"])
    save_as_lora(tmp_path, model, 16)
    for load in (PeftModel.from_pretrained, peft.PeftModel.from_pretrained):
        converted = load(base(), tmp_path)
        torch.testing.assert_close(converted(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 0.7])
def test_the_result_is_peft_s(rank: float):
    model = adapted("LORA")
    theirs = peft.get_peft_model(base(), peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
    theirs.load_state_dict(model.state_dict())
    config, state = convert_to_lora(model, rank)
    with pytest.warns(UserWarning, match="already a LoRA adapter"):
        other, their_state = peft.convert_to_lora(theirs, rank)
    assert state.keys() == their_state.keys()
    for key in state:
        if "lora_A" in key:
            pair = [each[key.replace("lora_A", "lora_B")] @ each[key] for each in (state, their_state)]
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)
    for name in state:
        module = name.removeprefix("base_model.model.").partition(".lora_")[0]
        assert config.rank_pattern.get(module, config.r) == other.rank_pattern.get(module, other.r)


def test_a_share_gives_each_layer_its_own_rank_and_the_file_loads(tmp_path: Path):
    model = adapted("LORA", rank_pattern={"layers.1.self_attn.q_proj": 1})
    save_as_lora(tmp_path, model, 0.9999)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=1e-2, atol=1e-3)
    assert loaded.peft_config["default"].rank_pattern


def test_the_transposed_weights_of_gpt2_are_converted(tmp_path: Path):
    torch.manual_seed(0)
    prototype = gpt2().eval()
    copies = [gpt2().eval(), gpt2().eval()]
    for copied in copies:
        copied.load_state_dict(prototype.state_dict())
    config = resolve(METHODS, "LORA", what="peft_type")(r=2, fan_in_fan_out=True)
    model = get_peft_model(copies[0], config)
    shake(model)
    save_as_lora(tmp_path, model.eval(), 2)
    loaded = PeftModel.from_pretrained(copies[1], tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_converted_is_refused():
    lora = resolve(METHODS, "LORA", what="peft_type")
    with pytest.raises(AdapterError, match="conv1 is a Conv1d"):
        convert_to_lora(get_peft_model(Net(), lora(target_modules=["conv1"])), 2)
    ia3 = resolve(METHODS, "IA3", what="peft_type")
    with pytest.raises(AdapterError, match="mid: the adapter changes the bias as well"):
        convert_to_lora(get_peft_model(Net(), ia3(target_modules=["mid"], feedforward_modules=[])), 2)
    with pytest.raises(AdapterError, match="trained biases"):
        convert_to_lora(get_peft_model(Net(), lora(target_modules=["mid"], bias="all")), 2)
    model = adapted("LORA")
    for rank in (0, -1, 1.5):
        with pytest.raises(AdapterError, match="rank must be"):
            convert_to_lora(model, rank)
    with pytest.raises(AdapterError, match="room for a rank of 16, not 17"):
        convert_to_lora(model, 17)
    with pytest.raises(AdapterError, match="no adapter 'other'"):
        convert_to_lora(model, 2, "other")
    model.merge_adapter()
    with pytest.raises(AdapterError, match="call unmerge_adapter before"):
        convert_to_lora(model, 2)
