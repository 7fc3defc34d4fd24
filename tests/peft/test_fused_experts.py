"""Adapters of Transformers 4, on single experts, load on the stacked experts of Transformers 5, as PEFT loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model

ROWS = torch.tensor([[3, 1, 4, 7, 3], [9, 2, 6, 5, 0]])
SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
}
PREFIX = "base_model.model.model.layers"


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=12, num_local_experts=4)).eval()


def qwen() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"intermediate_size": 12, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes, num_experts=4)).eval()


KINDS = {
    "mixtral": (mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2_moe": (qwen, "mlp", ("gate_proj", "up_proj", "down_proj")),
}


def older(folder: Path, kind: str, *, drop: str = "", **fields: Any) -> Path:
    """An adapter's folder as PEFT wrote it beside Transformers 4: on every expert's layers, and on attention."""
    _, block, names = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    state = {}

    def add(name: str, outputs: int, inputs: int) -> None:
        if drop and drop in name:
            return
        state[f"{name}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) / 4
        state[f"{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator) / 4

    for layer in range(2):
        add(f"{PREFIX}.{layer}.self_attn.q_proj", 16, 16)
        for expert in range(4):
            for name in names:
                sizes = (16, 12) if name == names[2] else (12, 16)
                add(f"{PREFIX}.{layer}.{block}.experts.{expert}.{name}", *sizes)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "inference_mode": True}
    config |= {"target_modules": ["q_proj", *names], **fields}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ROWS).logits


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
def test_what_was_on_single_experts_acts_as_in_peft(tmp_path: Path):
    # Of Qwen's PEFT 0.21 leaves the experts' tensors out, and only warns of others.
    folder = older(tmp_path, "mixtral")
    ours = PeftModel.from_pretrained(mixtral(), folder)
    theirs = peft.PeftModel.from_pretrained(mixtral(), folder)
    assert not torch.allclose(logits(ours), logits(mixtral()))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"target_modules": "all-linear"}], ids=str)
def test_merged_weights_have_every_expert_s_own_update(kind: str, fields: dict[str, Any], tmp_path: Path):
    make, block, (gate, up, down) = KINDS[kind]
    folder = older(tmp_path, kind, **fields)
    base: Any = make()
    merged: Any = PeftModel.from_pretrained(make(), folder).merge_and_unload()
    state = load_file(folder / "adapter_model.safetensors")
    scale = 6 / (2**0.5 if fields.get("use_rslora") else 2)
    found, own = merged.model.layers[1].mlp.experts, base.model.layers[1].mlp.experts
    for expert in range(4):
        key = f"{PREFIX}.1.{block}.experts.{expert}"
        updates = {
            name: scale * state[f"{key}.{name}.lora_B.weight"] @ state[f"{key}.{name}.lora_A.weight"]
            for name in (gate, up, down)
        }
        fused = torch.cat([updates[gate], updates[up]])
        torch.testing.assert_close(found.gate_up_proj[expert], own.gate_up_proj[expert] + fused)
        torch.testing.assert_close(found.down_proj[expert], own.down_proj[expert] + updates[down])


def test_it_joins_another_adapter_and_is_saved_as_it_is_now(tmp_path: Path):
    folder = older(tmp_path / "old", "mixtral")
    alone = PeftModel.from_pretrained(mixtral(), folder)
    model = get_peft_model(mixtral(), LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"]))
    model.load_adapter(folder, "old")
    model.set_adapter("old")
    torch.testing.assert_close(logits(model), logits(alone))
    alone.save_pretrained(tmp_path / "new")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(mixtral(), tmp_path / "new")), logits(alone))


def test_dropout_is_left_out_with_a_warning(tmp_path: Path):
    folder = older(tmp_path, "mixtral", lora_dropout=0.1)
    with pytest.warns(UserWarning, match="lora_dropout is left out"):
        PeftModel.from_pretrained(mixtral(), folder)


@pytest.mark.parametrize("drop", ["w3", "experts.2"])
def test_a_part_of_what_is_one_now_is_refused(drop: str, tmp_path: Path):
    folder = older(tmp_path, "mixtral", drop=drop)
    with pytest.raises(AdapterError, match="the adapter is on a part of it only"):
        PeftModel.from_pretrained(mixtral(), folder)
