"""What an OFT adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2023, arXiv:2306.07280.
Qiu et al., "Orthogonal Finetuning Made Scalable", 2025, arXiv:2506.19847.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig

# PEFT changed its series in this version, and tells by it whose files follow the older one; ours follow the newer.
_SERIES_SINCE = (0, 18)


def _terms(value: Any) -> str:
    if problem := checks.rank(value):
        return problem
    return "" if value > 1 else "must be at least 2: one term alone is the identity, which does not train"


@dataclass
class OFTConfig(LayeredConfig):
    """One OFT adapter: W x becomes W R x, with R orthogonal and made of blocks that are trained."""

    r: int = field(
        default=0,
        metadata={"help": "how many blocks a layer's inputs have; 0: as oft_block_size says"},
    )
    oft_block_size: int = field(
        default=32,
        metadata={
            "help": "how many inputs a block rotates together (larger trains more weights); 0: as r says. A layer "
            "that it does not divide gets the nearest size that does"
        },
    )
    module_dropout: float = field(
        default=0.0, metadata={"help": "share of the blocks that training leaves unrotated"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "oft_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "start at the identity, where the adapter does nothing; false: at random"},
    )
    coft: bool = field(
        default=False, metadata={"help": "keep the rotation near the identity (constrained OFT)"}
    )
    eps: float = field(default=6e-5, metadata={"help": "how far coft lets the rotation go"})
    block_share: bool = field(default=False, metadata={"help": "one rotation for all blocks of a layer"})
    use_cayley_neumann: bool = field(
        default=True,
        metadata={"help": "make rotations by a short series, which is fast; false: exactly, by solving"},
    )
    num_cayley_neumann_terms: int = field(
        default=5, metadata={"help": "how many terms the series has; more are nearer to a rotation"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.OFT
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.count,
        "oft_block_size": checks.count,
        "module_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "oft_only"),
        "init_weights": checks.boolean,
        "coft": checks.boolean,
        "eps": checks.positive,
        "block_share": checks.boolean,
        "use_cayley_neumann": checks.boolean,
        "num_cayley_neumann_terms": _terms,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """Blocks have either a number or a size."""
        problems = super().conflicts()
        if self.r and self.oft_block_size:
            problems.append(
                ("oft_block_size", "must be 0 where r is set: r × oft_block_size is the layer's width")
            )
        elif self.r == self.oft_block_size == 0:
            problems.append(("oft_block_size", "is 0, and r too; set one of them"))
        return problems

    @classmethod
    def remark(cls, values: Mapping[str, Any]) -> str:
        """Files older than the series are read as if they followed it."""
        version = re.match(r"(\d+)\.(\d+)", str(values.get("peft_version")))
        since = (0, 0) if version is None else (int(version[1]), int(version[2]))
        if since >= _SERIES_SINCE or not values.get("use_cayley_neumann"):
            return ""
        return (
            "was trained with PEFT before 0.18, whose series for use_cayley_neumann ended otherwise: its outputs "
            "will differ a little from those in training"
        )

    def to_dict(self) -> dict[str, Any]:
        """As every config's, with the version since which PEFT makes rotations so: it warns where there is none."""
        values = super().to_dict()
        values.setdefault("peft_version", "{}.{}.0".format(*_SERIES_SINCE))
        return dict(sorted(values.items()))
