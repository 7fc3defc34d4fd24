"""What a BOFT adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", 2023, arXiv:2311.06243.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig


@dataclass
class BOFTConfig(LayeredConfig):
    """One BOFT adapter: W x becomes s · W R x; R is a product of block rotations, and every output has a scale in s."""

    boft_block_size: int = field(
        default=4,
        metadata={
            "help": "how many inputs a block rotates together; it must divide a layer's; 0: as boft_block_num says"
        },
    )
    boft_block_num: int = field(
        default=0,
        metadata={
            "help": "how many blocks a layer's inputs have; it must divide them; 0: as boft_block_size says"
        },
    )
    boft_n_butterfly_factor: int = field(
        default=1,
        metadata={
            "help": "how many rotations are multiplied; each more mixes twice as many inputs; 1: as OFT"
        },
    )
    boft_dropout: float = field(
        default=0.0,
        metadata={"help": "share of the blocks of one of the rotations that training leaves unrotated"},
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "boft_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "start at the identity, where the adapter does nothing; false: at random"},
    )

    METHOD: ClassVar[PeftType | None] = PeftType.BOFT
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "boft_block_size": checks.count,
        "boft_block_num": checks.count,
        "boft_n_butterfly_factor": checks.rank,
        "boft_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "boft_only"),
        "init_weights": checks.boolean,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """Blocks have either a number or a size."""
        problems = super().conflicts()
        if self.boft_block_size and self.boft_block_num:
            reason = (
                "must be 0 where boft_block_num is set: boft_block_size × boft_block_num is the layer's width"
            )
            problems.append(("boft_block_size", reason))
        elif self.boft_block_size == self.boft_block_num == 0:
            problems.append(("boft_block_size", "is 0, and boft_block_num too; set one of them"))
        return problems
