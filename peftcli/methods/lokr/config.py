"""What a LoKr adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2023,
arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.lycoris_config import LycorisConfig


def _factor(value: Any) -> str:
    return "" if value == -1 else checks.size(value).replace("at least 1", "-1, or at least 1")


def _start(value: Any) -> str:
    valid = isinstance(value, bool) or value == "lycoris"
    return "" if valid else f"must be true, false or lycoris, not {checks.shown(value)}"


@dataclass
class LoKrConfig(LycorisConfig):
    """One LoKr adapter: W x becomes W x + alpha / r · (A ⊗ B) x; B, and A if it is asked for, are of rank r."""

    decompose_both: bool = field(
        default=False,
        metadata={"help": "make the left matrix of two factors, too, where r is below its half"},
    )
    decompose_factor: int = field(
        default=-1,
        metadata={
            "help": "the left matrix has about as many rows and columns as this; -1: near the sizes' square roots"
        },
    )
    rank_dropout_scale: bool = field(
        default=False, metadata={"help": "make up for the rows that rank_dropout zeroes by larger others"}
    )
    init_weights: bool | Literal["lycoris"] = field(
        default=True,
        metadata={
            "help": "true (the left matrix starts at zero), lycoris (the right one does), or false (at random)"
        },
    )

    METHOD: ClassVar[PeftType | None] = PeftType.LOKR
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LycorisConfig.CHECKS,
        "decompose_both": checks.boolean,
        "decompose_factor": _factor,
        "rank_dropout_scale": checks.boolean,
        "init_weights": _start,
    }
