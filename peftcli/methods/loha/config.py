"""What a LoHa adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", 2021,
arXiv:2108.06098.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.lycoris_config import LycorisConfig


@dataclass
class LoHaConfig(LycorisConfig):
    """One LoHa adapter: W x becomes W x + alpha / r · ((A B) ∘ (C D)) x; the update has up to rank r²."""

    init_weights: bool = field(
        default=True, metadata={"help": "start at zero, where the adapter does nothing; false: at random"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.LOHA
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {**LycorisConfig.CHECKS, "init_weights": checks.boolean}
