"""What a prefix is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, arXiv:2101.00190.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.prompt_config import PromptLearningConfig


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """One prefix: keys and values that stand before those of each attention layer."""

    init_weights: str | None = field(
        default=None, metadata={"help": "null: a new prefix is random; zero: its keys and values are zero"}
    )
    encoder_hidden_size: int | None = field(
        default=None, metadata={"help": "width of the network of prefix_projection; default: token_dim"}
    )
    prefix_projection: bool = field(
        default=False, metadata={"help": "let a network make the prefix while it is trained"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.PREFIX_TUNING
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PromptLearningConfig.CHECKS,
        "init_weights": checks.optional(checks.one_of("zero")),
        "encoder_hidden_size": checks.optional(checks.rank),
        "prefix_projection": checks.boolean,
    }
