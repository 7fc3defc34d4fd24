"""Configs that train single tokens: some rows of the embeddings instead of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.targeted import TargetsConfig


def token_ids(value: Any) -> str:
    """A list of token ids that is not empty, each named once."""
    if not isinstance(value, list):
        return f"must be a list of token ids, not {checks.shown(value)}"
    if not value:
        return "is an empty list; name at least one token"
    wrong = [item for item in value if isinstance(item, bool) or not isinstance(item, int) or item < 0]
    if wrong:
        return f"must hold token ids from 0 up, not {checks.shown(wrong[0])}"
    token, count = Counter(value).most_common(1)[0]
    return f"names token {token} more than once" if count > 1 else ""


def _by_module(value: Any) -> str:
    """A list of token ids, or such lists by module name."""
    if not isinstance(value, Mapping):
        either = "a list of token ids, or a mapping from module names to such lists"
        return token_ids(value).replace("a list of token ids", either)
    if not value:
        return "is an empty mapping; name at least one module, or leave it out"
    for name, ids in value.items():
        if not isinstance(name, str) or not name:
            return f"must have module names as keys, not {checks.shown(name)}"
        if problem := token_ids(ids):
            return f"{name!r} {problem}"
    return ""


@dataclass
class TokensConfig(TargetsConfig):
    """An adapter beside which single tokens may be trained, and weights that the base has tied may stay so."""

    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None,
        metadata={
            "help": "ids of tokens whose embeddings are trained as well: a list, for the input embeddings (and a "
            "head that is tied to them), or module name: list"
        },
    )
    ensure_weight_tying: bool = field(
        default=False,
        metadata={
            "help": "keep a tied head and embeddings one weight where modules_to_save or trainable_token_indices "
            "names either"
        },
    )

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **TargetsConfig.CHECKS,
        "trainable_token_indices": checks.optional(_by_module),
        "ensure_weight_tying": checks.boolean,
    }

    @property
    def trains_tokens(self) -> bool:
        """Whether it trains some."""
        return self.trainable_token_indices is not None
