"""The fields that LoHa and LoKr share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.targeted import LayeredConfig


@dataclass
class LycorisConfig(LayeredConfig):
    """An adapter on linear layers and convolutions that adds alpha / r · D to the weight."""

    r: int = field(default=8, metadata={"help": "the rank of the matrices that the update is made of"})
    alpha: float = field(default=8, metadata={"help": "the update is scaled by alpha / r"})
    rank_dropout: float = field(
        default=0.0, metadata={"help": "share of the update's rows (outputs) that training zeroes"}
    )
    module_dropout: float = field(
        default=0.0, metadata={"help": "how likely training leaves a layer's whole update out of a step"}
    )
    use_effective_conv2d: bool = field(
        default=False,
        metadata={
            "help": "keep a kernel's height and width apart from its channels, which takes fewer parameters"
        },
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "other ranks for some layers: name or regular expression: r"}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "another alpha for some layers: name or regular expression: alpha"},
    )

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.rank,
        "alpha": checks.positive,
        "rank_dropout": checks.probability,
        "module_dropout": checks.probability,
        "use_effective_conv2d": checks.boolean,
        "rank_pattern": checks.pattern_of(checks.rank),
        "alpha_pattern": checks.pattern_of(checks.positive),
    }

    def __post_init__(self) -> None:
        # The first key that fits counts, and files are sorted: sorted here too, an adapter loads as it was made.
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if value is None or isinstance(value, Mapping):
                setattr(self, name, dict(sorted((value or {}).items(), key=lambda item: str(item[0]))))
        super().__post_init__()
