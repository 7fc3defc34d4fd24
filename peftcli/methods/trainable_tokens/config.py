"""What an adapter of trained tokens is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

No paper: the method is PEFT's own, of 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftConfig, PeftType
from peftcli.adapters.token_config import token_ids


@dataclass
class TrainableTokensConfig(PeftConfig):
    """Some rows of the embeddings are trained, in a head that is tied to them as well; all else stays as it is."""

    token_indices: list[int] = field(
        default_factory=list, metadata={"help": "ids of the tokens whose embeddings are trained"}
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "the modules with a row for each token: names, or a regular expression over whole names; "
            "default: the input embeddings"
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": "start as the base's rows, where the adapter does nothing; false: at random"},
    )

    METHOD: ClassVar[PeftType | None] = PeftType.TRAINABLE_TOKENS
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PeftConfig.CHECKS,
        "token_indices": token_ids,
        "target_modules": checks.optional(checks.names_or_expression),
        "init_weights": checks.boolean,
    }

    @property
    def trains_tokens(self) -> bool:
        """It does nothing else."""
        return True
