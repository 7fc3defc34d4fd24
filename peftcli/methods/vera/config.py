"""What a VeRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023, arXiv:2310.11454.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayersConfig


@dataclass
class VeraConfig(LayersConfig):
    """One VeRA adapter: W x becomes W x + b ∘ B (d ∘ A x); the vectors b and d are trained, A and B random."""

    r: int = field(
        default=256,
        metadata={"help": "the rank: how many numbers d has; larger than LoRA's, since each costs little"},
    )
    projection_prng_key: int = field(
        default=0, metadata={"help": "the seed from which the random projections are drawn"}
    )
    save_projection: bool = field(
        default=True,
        metadata={"help": "save the random projections; false: draw them again when the adapter is loaded"},
    )
    vera_dropout: float = field(
        default=0.0, metadata={"help": "share of the inputs that training leaves out"}
    )
    d_initial: float = field(default=0.1, metadata={"help": "what d starts with; at most 0.1 is recommended"})
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "vera_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "start with b at zero, where the adapter does nothing; false: with ones, d at random"
        },
    )

    METHOD: ClassVar[PeftType | None] = PeftType.VERA
    # PEFT's only difference from LoRA's targets.
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = {"phi": ["q_proj", "v_proj"]}
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayersConfig.CHECKS,
        "r": checks.rank,
        "projection_prng_key": checks.seed,
        "save_projection": checks.boolean,
        "vera_dropout": checks.probability,
        "d_initial": checks.positive,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "vera_only"),
        "init_weights": checks.boolean,
    }
