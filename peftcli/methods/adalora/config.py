"""What an AdaLoRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv:2303.10512.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig
from peftcli.adapters.token_config import TokensConfig

# PEFT's defaults that are not LoRA's.
TARGETS: dict[str, list[str]] = {
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    "bart": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "roberta": ["query", "key", "value", "dense"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
}
_UNUSED_R = 8


def _steps(least: int) -> checks.Check:
    def checked(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number, not {checks.shown(value)}"
        return "" if value >= least else f"must be at least {least}, not {value}"

    return checked


def _beta(value: Any) -> str:
    return checks.probability(value) or ("" if value > 0 else f"must be above 0 and below 1, not {value}")


def _weight(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, not {checks.shown(value)}"
    return "" if math.isfinite(value) and value >= 0 else f"must be a finite number from 0 up, not {value}"


def _pattern(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"must be a mapping from layers to lists of true and false, not {checks.shown(value)}"
    for name, flags in value.items():
        if not isinstance(flags, list) or not all(isinstance(flag, bool) for flag in flags):
            return f"{name!r} must have a list of true and false, not {checks.shown(flags)}"
    return ""


@dataclass
class AdaLoraConfig(TokensConfig, LayeredConfig):
    """One AdaLoRA adapter: W x becomes W x + scaling · B E A x, E diagonal; training prunes what matters least of E."""

    target_r: int = field(default=8, metadata={"help": "the rank that layers have in the end, on average"})
    init_r: int = field(default=12, metadata={"help": "the rank that every layer starts with"})
    tinit: int = field(default=0, metadata={"help": "steps before ranks begin to go down"})
    tfinal: int = field(default=0, metadata={"help": "steps at the end in which ranks stay as they are"})
    deltaT: int = field(default=1, metadata={"help": "steps between two allocations of ranks"})  # noqa: N815  (PEFT's)
    beta1: float = field(default=0.85, metadata={"help": "decay of the running mean of weights' importance"})
    beta2: float = field(default=0.85, metadata={"help": "decay of the running mean of its uncertainty"})
    orth_reg_weight: float = field(
        default=0.5, metadata={"help": "weight, in the loss, of how far A and B are from orthonormal"}
    )
    total_step: int | None = field(
        default=None, metadata={"help": "optimizer steps of the training; default: those of the run"}
    )
    rank_pattern: dict[str, list[bool]] | None = field(
        default=None, metadata={"help": "which ranks each layer kept; training writes it"}
    )
    r: int = field(default=_UNUSED_R, metadata={"help": "not used: ranks start at init_r"})
    lora_alpha: float = field(default=8, metadata={"help": "the update is scaled by lora_alpha / init_r"})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "share of the adapter's inputs that training zeroes"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_lora_weights: bool = field(
        default=True, metadata={"help": "start at zero, where the adapter does nothing; false: at random"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.ADALORA
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = TARGETS
    # LoRA's fields, which PEFT's class has as well; its AdaLoRA acts on none of them.
    DEFERRED: ClassVar[Mapping[str, Any]] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "corda_config": None,
        "eva_config": None,
        "kasa_config": None,
        "layer_replication": None,
        "loftq_config": {},
        "lora_bias": False,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "monteclora_config": None,
        "qalora_group_size": 16,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "target_parameters": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        **TokensConfig.CHECKS,
        "target_r": checks.rank,
        "init_r": checks.rank,
        "tinit": _steps(0),
        "tfinal": _steps(0),
        "deltaT": _steps(1),
        "beta1": _beta,
        "beta2": _beta,
        "orth_reg_weight": _weight,
        "total_step": checks.optional(_steps(1)),
        "rank_pattern": checks.optional(_pattern),
        "r": checks.rank,
        "lora_alpha": checks.positive,
        "lora_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "lora_only"),
        "init_lora_weights": checks.boolean,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r != _UNUSED_R:
            warnings.warn("AdaLoRA does not use r; set init_r, where ranks start", stacklevel=3)

    def conflicts(self) -> list[tuple[str, str]]:
        """Ranks only go down, and need steps to do so."""
        problems = super().conflicts()
        numbers = ("target_r", "init_r", "tinit", "tfinal", "total_step")
        if any(self.CHECKS[name](getattr(self, name)) for name in numbers):
            return problems  # each says by itself what is wrong with it
        if self.target_r > self.init_r:
            problems.append(
                ("target_r", f"is {self.target_r}, above init_r {self.init_r}; ranks only go down")
            )
        if self.total_step is not None and self.tinit + self.tfinal >= self.total_step:
            short = f"with tfinal {self.tfinal} it leaves no step of {self.total_step} for ranks to go down"
            problems.append(("tinit", f"{short}; lower them"))
        return problems
