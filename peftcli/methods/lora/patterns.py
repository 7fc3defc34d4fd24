"""Ranks and factors of their own for some layers (`rank_pattern`, `alpha_pattern`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def matches(key: str, name: str) -> bool:
    """PEFT's rule: the expression fits the whole name, or its end after a dot."""
    return re.match(rf"(.*\.)?({key})$", name) is not None


def by_pattern(pattern: Mapping[str, Any], name: str, default: float) -> float:
    """The value of the first key that fits."""
    return next((value for key, value in pattern.items() if matches(key, name)), default)
