"""What an LN tuning adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", 2023, arXiv:2312.11420.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import TargetedConfig

_LLAMA = ["input_layernorm", "norm", "post_attention_layernorm"]
_GEMMA2 = [*_LLAMA, "post_feedforward_layernorm", "pre_feedforward_layernorm"]
_BLOOM = ["input_layernorm", "ln_f", "post_attention_layernorm"]
_QWEN = ["post_attention_layernorm"]
_T5 = ["final_layer_norm", "layer_norm"]

# PEFT's table of an architecture's norms (and for LLaVA of more).
TARGETS: dict[str, list[str]] = {
    "bart": ["encoder_attn_layer_norm", "final_layer_norm", "self_attn_layer_norm"],
    "blip-2": ["LayerNorm", "final_layer_norm", "layernorm", "self_attn_layer_norm"],
    "bloom": _BLOOM,
    "falcon": _BLOOM,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "gptj": ["ln_1", "ln_f"],
    "llama": _LLAMA,
    "llava": [*_LLAMA, "embed_tokens", "lm_head", "multi_modal_projector"],
    "mistral": _LLAMA,
    "mt5": _T5,
    "phi": ["final_layernorm", "input_layernorm"],
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "t5": _T5,
}


@dataclass
class LNTuningConfig(TargetedConfig):
    """One LN tuning adapter: a trained copy of every norm, or of whatever modules are named."""

    METHOD: ClassVar[PeftType | None] = PeftType.LN_TUNING
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = TARGETS
    DEFAULT_CLASSES: ClassVar[str] = r"(?i)(layer|rms)norm$"
