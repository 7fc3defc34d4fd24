"""What a LoRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig
from peftcli.errors import did_you_mean

INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora")
LATER_INITIALISATIONS = ("eva", "corda", "loftq", "lora_ga", "mica")
BIASES = ("none", "all", "lora_only")


def _initialisation(value: Any) -> str:
    if isinstance(value, bool) or (isinstance(value, str) and value in INITIALISATIONS):
        return ""
    if not isinstance(value, str):
        return f"must be true, false or a name, not {checks.shown(value)}"
    if re.fullmatch(r"pissa_niter_\d{1,4}", value):
        return ""
    if value in LATER_INITIALISATIONS:
        return f"{value!r} is not supported yet; choose true, false or one of: {', '.join(INITIALISATIONS)}"
    return f"{value!r} is not an initialisation; {did_you_mean(value, [*INITIALISATIONS, 'pissa_niter_16'])}"


def _bias(value: Any) -> str:
    return "" if value in BIASES else f"{checks.shown(value)} is not one of: {', '.join(BIASES)}"


@dataclass
class LoraConfig(LayeredConfig):
    """One LoRA adapter: W x becomes W x + scaling · B A x; A (r, in) and B (out, r) are trained, W is not."""

    r: int = field(default=8, metadata={"help": "the rank: how many dimensions the update has"})
    lora_alpha: float = field(default=8, metadata={"help": "the update is scaled by lora_alpha / r"})
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
    use_rslora: bool = field(
        default=False, metadata={"help": "scale by lora_alpha / sqrt(r) (rank-stabilised)"}
    )
    init_lora_weights: bool | str = field(
        default=True,
        metadata={
            "help": "true (the update starts at zero), false (random), gaussian, orthogonal, olora, pissa, "
            "or pissa_niter_N"
        },
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "other ranks for some layers: name or regular expression: r"}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "other lora_alpha for some layers: name or regular expression: lora_alpha"},
    )
    use_dora: bool = field(
        default=False, metadata={"help": "train the weights' magnitudes apart from their directions (DoRA)"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.LORA
    DEFERRED: ClassVar[Mapping[str, Any]] = {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "corda_config": None,
        "ensure_weight_tying": False,
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
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_qalora": False,
        "velora_config": None,
    }
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.rank,
        "lora_alpha": checks.positive,
        "lora_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": _bias,
        "use_rslora": checks.boolean,
        "init_lora_weights": _initialisation,
        "rank_pattern": checks.pattern_of(checks.rank),
        "alpha_pattern": checks.pattern_of(checks.positive),
        "use_dora": checks.boolean,
    }

    @property
    def changes_base(self) -> bool:
        """Whether it starts with a part of the base's weights."""
        return str(self.init_lora_weights).partition("_")[0] in {"pissa", "olora"}

    def __post_init__(self) -> None:
        # The first key that fits counts, and files are sorted: sorted here too, an adapter loads as it was made.
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if value is None or isinstance(value, Mapping):
                setattr(self, name, dict(sorted((value or {}).items(), key=lambda item: str(item[0]))))
        super().__post_init__()
