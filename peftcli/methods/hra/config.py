"""What an HRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation",
2024, arXiv:2405.17484.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig


@dataclass
class HRAConfig(LayeredConfig):
    """One HRA adapter: W x becomes W H₁ … Hᵣ x, with trained Householder reflections H."""

    r: int = field(
        default=8,
        metadata={
            "help": "how many reflections; an even number can start as pairs, which together do nothing"
        },
    )
    apply_GS: bool = field(  # noqa: N815  (PEFT's name)
        default=False,
        metadata={"help": "make the reflections' directions orthogonal to one another (Gram-Schmidt)"},
    )
    bias: Literal["none", "all", "hra_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "start in pairs, where the adapter does nothing; false: at random"},
    )

    METHOD: ClassVar[PeftType | None] = PeftType.HRA
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.rank,
        "apply_GS": checks.boolean,
        "bias": checks.one_of("none", "all", "hra_only"),
        "init_weights": checks.boolean,
    }
