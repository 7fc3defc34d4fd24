"""What a SHiRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Bhardwaj et al., "Sparse High Rank Adapters", 2024, arXiv:2406.13175.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import TargetsConfig


def _seed(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {checks.shown(value)}"
    return "" if 0 <= value < 2**63 else f"must be from 0 to 2**63 - 1, not {value}"


@dataclass
class ShiraConfig(TargetsConfig):
    """One SHiRA adapter: W x becomes W x + S x; the places of the few entries of S are fixed, their values trained."""

    r: int = field(
        default=32,
        metadata={"help": "train as many numbers as LoRA of this rank: r × (inputs + outputs) of a layer"},
    )
    mask_type: str = field(
        default="random",
        metadata={"help": "how the places are chosen: random; a file may name another, since it holds them"},
    )
    random_seed: int | None = field(
        default=None, metadata={"help": "the seed of the random choice; the same seed, the same places"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "start at zero, where the adapter does nothing; false: at random"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.SHIRA
    # PEFT's only difference from LoRA's targets.
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = {"phi": ["q_proj", "v_proj"]}
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **TargetsConfig.CHECKS,
        "r": checks.rank,
        "random_seed": _seed,
        "fan_in_fan_out": checks.boolean,
        "init_weights": checks.boolean,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """Only a trained adapter can have places that were chosen in a way that we do not know."""
        problems = super().conflicts()
        if not isinstance(self.mask_type, str) or (self.mask_type != "random" and not self.inference_mode):
            problems.append(
                (
                    "mask_type",
                    f"{checks.shown(self.mask_type)} is no way to choose places; the one there is: random",
                )
            )
        return problems
