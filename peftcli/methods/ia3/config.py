"""What an (IA)³ adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022,
arXiv:2205.05638.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import TargetedConfig

_KV_DOWN, _QV_DOWN = ["k_proj", "v_proj", "down_proj"], ["q_proj", "v_proj", "down_proj"]

# PEFT's tables: the targets of an architecture, and which of them are feed-forward layers.
TARGETS: dict[str, list[str]] = {
    "t5": ["k", "v", "wo"],
    "mt5": ["k", "v", "wi_1"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bloom": ["query_key_value", "mlp.dense_4h_to_h"],
    "roberta": ["key", "value", "output.dense"],
    "opt": ["q_proj", "k_proj", "fc2"],
    "gptj": ["q_proj", "v_proj", "fc_out"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gpt_neo": ["q_proj", "v_proj", "c_proj"],
    "bart": ["q_proj", "v_proj", "fc2"],
    "gpt_bigcode": ["c_attn", "mlp.c_proj"],
    "llama": _KV_DOWN,
    "llama4": _QV_DOWN,
    "mistral": _KV_DOWN,
    "mixtral": ["k_proj", "v_proj", "w2"],
    "bert": ["key", "value", "output.dense"],
    "deberta-v2": ["key_proj", "value_proj", "output.dense"],
    "deberta": ["in_proj", "output.dense"],
    "RefinedWebModel": ["query_key_value", "dense_4h_to_h"],
    "RefinedWeb": ["query_key_value", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "phi": ["q_proj", "v_proj", "fc2"],
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _QV_DOWN),
}
FEED_FORWARD: dict[str, list[str]] = {
    model_type: [] if model_type == "mt5" else targets[-1:] for model_type, targets in TARGETS.items()
}


@dataclass
class IA3Config(TargetedConfig):
    """One (IA)³ adapter: a layer's output, or a feed-forward layer's input, is scaled by a trained vector."""

    feedforward_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "which of target_modules are feed-forward layers, whose input is scaled instead of their output; "
            "default: by architecture"
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    init_ia3_weights: bool = field(
        default=True, metadata={"help": "start at ones, where the adapter does nothing; false: at random"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.IA3
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = TARGETS
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **TargetedConfig.CHECKS,
        "feedforward_modules": lambda value: "" if value in (None, []) else checks.names_or_expression(value),
        "fan_in_fan_out": checks.boolean,
        "init_ia3_weights": checks.boolean,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.feedforward_modules
        if isinstance(given, set | frozenset | tuple):
            self.feedforward_modules = sorted(given)

    def conflicts(self) -> list[tuple[str, str]]:
        """A feed-forward layer that is no target would not be adapted at all."""
        problems = super().conflicts()
        targets, feedforward = self.target_modules, self.feedforward_modules
        if isinstance(targets, list) and isinstance(feedforward, list):
            problems += [
                ("feedforward_modules", f"{name!r} is not among target_modules; name it there, too")
                for name in feedforward
                if name not in targets
            ]
        return problems

    def to_dict(self) -> dict[str, Any]:
        """As every config's, with the names sorted."""
        values = super().to_dict()
        if isinstance(values["feedforward_modules"], list):
            values["feedforward_modules"] = sorted(set(values["feedforward_modules"]))
        return values
