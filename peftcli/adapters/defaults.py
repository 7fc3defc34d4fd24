"""Which layers to adapt where a config does not say: by architecture, else by what attention layers look like."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

_BY_LAYERS: dict[str, list[str]] = {
    "q_proj v_proj": [
        "bart",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt_neo",
        "gptj",
        "llama",
        "llama4",
        "mistral",
        "mixtral",
        "opt",
        "qwen2",
        "qwen3",
        "stablelm",
    ],
    "q v": ["mt5", "t5"],
    "query value": ["bert", "electra", "layoutlm", "roberta", "xlm-roberta"],
    "query_key_value": ["RefinedWeb", "RefinedWebModel", "bloom", "chatglm", "falcon", "gpt_neox"],
    "c_attn": ["gpt2", "gpt_bigcode"],
    "q v q_proj v_proj": ["blip-2"],
    "c_proj c_attn": ["btlm"],
    "qkv_proj": ["codegen"],
    "in_proj": ["deberta"],
    "query_proj value_proj": ["deberta-v2"],
    "Wqkv": ["mpt"],
    "q_proj k_proj v_proj o_proj": ["nemotron_h"],
    "q_proj v_proj fc1 fc2": ["phi"],
    "key value receptance output": ["rwkv"],
    "r_proj k_proj v_proj o_proj key value": ["rwkv7"],
}
# model_type -> the layers that PEFT adapts by default: whoever moves here gets the same adapter.
BY_ARCHITECTURE: dict[str, list[str] | str] = {
    **{model_type: layers.split() for layers, types in _BY_LAYERS.items() for model_type in types},
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
}

# What attention's query and value projections are called, and projections that hold both.
_NAMES = (
    {"q_proj", "v_proj"},
    {"query", "value"},
    {"q_lin", "v_lin"},
    {"query_proj", "value_proj"},
    {"q", "v"},
    {"to_q", "to_v"},
    {"wq", "wv"},
    {"linear_q", "linear_v"},
    {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"},
    {"qkv_proj"},
    {"qkv"},
    {"query_key_value"},
    {"Wqkv"},
    {"c_attn"},
    {"in_proj"},
)


def default_targets(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> list[str] | str | None:
    """The layers that are adapted by default, as `target_modules` would name them; None where nothing fits."""
    named = list(modules)
    known = BY_ARCHITECTURE.get(getattr(getattr(model, "config", None), "model_type", ""))
    if isinstance(known, str):
        return known
    last = {name.rpartition(".")[2] for name, _ in named}
    if known and last.intersection(known):  # a table's row may name layers of several versions of a model
        return sorted(last.intersection(known))
    linear = {name.rpartition(".")[2] for name, module in named if isinstance(module, nn.Linear | Conv1D)}
    found = [group & linear for group in _NAMES if group & linear]
    return sorted(set().union(*found)) if found else None
