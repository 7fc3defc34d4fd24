"""What a MiSS adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", 2024,
arXiv:2409.15371.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig


def _start(value: Any) -> str:
    valid = isinstance(value, bool) or value in ("bat", "mini")
    return "" if valid else f"must be true, false, bat or mini, not {checks.shown(value)}"


@dataclass
class MissConfig(LayeredConfig):
    """One MiSS adapter: W x becomes W x + D s, where s is the sum of the blocks of r inputs that x is cut into."""

    r: int = field(default=64, metadata={"help": "how many inputs a block has; at most as many as a layer"})
    miss_dropout: float = field(default=0.0, metadata={"help": "dropout of the adapter's inputs in training"})
    mini_r: int = field(
        default=1,
        metadata={
            "help": "with init_weights mini: how many outputs are trained, which the others repeat; must divide them"
        },
    )
    bias: Literal["none", "all", "MiSS_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool | Literal["bat", "mini"] = field(
        default=True,
        metadata={
            "help": "the kind of adapter: true, one matrix for all blocks; mini, a part of it, repeated; bat, a "
            "matrix for each block of outputs, which also mixes the weight itself. All of these start at zero; "
            "false: as true, but at random"
        },
    )

    METHOD: ClassVar[PeftType | None] = PeftType.MISS
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.rank,
        "miss_dropout": checks.probability,
        "mini_r": checks.size,
        "bias": checks.one_of("none", "all", "MiSS_only"),
        "init_weights": _start,
    }
