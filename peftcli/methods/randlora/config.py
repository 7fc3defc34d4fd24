"""What a RandLoRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", 2025, arXiv:2502.00987.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayersConfig


@dataclass
class RandLoraConfig(LayersConfig):
    """One RandLoRA adapter: W x becomes W x + alpha / r · Σ Bₙ Λₙ A Γₙ x; Λ and Γ are trained and diagonal."""

    r: int = field(
        default=32,
        metadata={"help": "the rank of each random base; the smaller, the more bases and trained numbers"},
    )
    projection_prng_key: int = field(
        default=0, metadata={"help": "the seed from which the random bases are drawn"}
    )
    save_projection: bool = field(
        default=True,
        metadata={"help": "save the random bases; false: draw them again when the adapter is loaded"},
    )
    sparse: bool = field(
        default=False, metadata={"help": "two thirds of the bases' entries are zero, the others of one size"}
    )
    very_sparse: bool = field(
        default=False,
        metadata={
            "help": "the same, with all but 1 in √d entries zero; d is the smaller size of the largest layer"
        },
    )
    randlora_dropout: float = field(
        default=0.0, metadata={"help": "share of the inputs that training leaves out"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    randlora_alpha: float = field(
        default=640,
        metadata={
            "help": "the update is scaled by alpha / r; 20 times the rank is usual, less trains more stably"
        },
    )
    bias: Literal["none", "all", "randlora_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "start with Λ at zero, where the adapter does nothing; false: at random"},
    )

    METHOD: ClassVar[PeftType | None] = PeftType.RANDLORA
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayersConfig.CHECKS,
        "r": checks.rank,
        "projection_prng_key": checks.seed,
        "save_projection": checks.boolean,
        "sparse": checks.boolean,
        "very_sparse": checks.boolean,
        "randlora_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "randlora_alpha": checks.positive,
        "bias": checks.one_of("none", "all", "randlora_only"),
        "init_weights": checks.boolean,
    }
