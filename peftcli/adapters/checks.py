"""Checks of config values that the methods share: each gives what is wrong with a value, or nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from peftcli.files import is_path

# A longer expression is a mistake or an attack; PEFT's users write some dozens of characters.
MAX_PATTERN_LENGTH = 4096
MAX_RANK = 2**16
# Far above what any model has layers; a million of them are an attack on whoever reads the file.
MAX_ITEMS = 10_000

MAX_NUMBER = sys.float_info.max

Check = Callable[[Any], str]


def boolean(value: Any) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else f"must be true or false, not {shown(value)}"


def rank(value: Any) -> str:
    """A whole number from 1 to `MAX_RANK`."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {shown(value)}"
    return "" if 1 <= value <= MAX_RANK else f"must be from 1 to {MAX_RANK}, not {shown(value)}"


def count(value: Any) -> str:
    """A whole number from 0 to `MAX_RANK`; 0 stands for what is not set."""
    return "" if value == 0 and not isinstance(value, bool) else rank(value).replace("from 1", "from 0")


def size(value: Any) -> str:
    """A whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {shown(value)}"
    return "" if value >= 1 else f"must be at least 1, not {shown(value)}"


def seed(value: Any) -> str:
    """A whole number that a random generator starts from."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {shown(value)}"
    return "" if 0 <= value < 2**63 else f"must be from 0 to 2**63 - 1, not {shown(value)}"


def positive(value: Any) -> str:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, not {shown(value)}"
    return "" if 0 < value <= MAX_NUMBER else f"must be a finite number above 0, not {shown(value)}"


def probability(value: Any) -> str:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, not {shown(value)}"
    return "" if 0 <= value < 1 else f"must be at least 0 and below 1, not {shown(value)}"


def one_of(*choices: str) -> Check:
    """One of some names."""
    return lambda value: "" if value in choices else f"{shown(value)} is not one of: {', '.join(choices)}"


def text(value: Any) -> str:
    """A string or nothing."""
    return "" if value is None or isinstance(value, str) else f"must be a text, not {shown(value)}"


def place(value: Any) -> str:
    """A path or a Hub id, or nothing."""
    if problem := text(value):
        return problem
    return "" if value is None or is_path(value) else "is longer than any path or Hub id"


def names(value: Any) -> str:
    """A list of module names that is not empty."""
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        return f"must be a list of module names, not {shown(value)}"
    if not value:
        return "is an empty list; name at least one module, or leave it out"
    if len(value) > MAX_ITEMS:
        return f"has {len(value):,} names; {MAX_ITEMS:,} are the most"
    wrong = [item for item in value if not isinstance(item, str) or not item]
    return f"must hold module names only, not {shown(wrong[0])}" if wrong else ""


def expression(value: Any) -> str:
    """A regular expression that Python compiles."""
    if not isinstance(value, str) or not value:
        return f"must be a regular expression, not {shown(value)}"
    if len(value) > MAX_PATTERN_LENGTH:
        return f"is {len(value)} characters long; a regular expression may have {MAX_PATTERN_LENGTH}"
    try:
        re.compile(value)
    except (re.error, OverflowError) as error:
        return f"is not a regular expression: {error} in {value!r}"
    except RecursionError:
        return "is not a regular expression: its brackets are nested too deep"
    return ""


def names_or_expression(value: Any) -> str:
    """A list of module names, or one regular expression over whole module names."""
    if isinstance(value, str):
        return expression(value)
    return names(value).replace("a list of module names", "a list of module names or a regular expression")


def indices(value: Any) -> str:
    """One layer index, or a list of them that is not empty."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        return "is an empty list; name at least one layer, or leave it out"
    if len(items) > MAX_ITEMS:
        return f"has {len(items):,} numbers; {MAX_ITEMS:,} are the most"
    wrong = [item for item in items if isinstance(item, bool) or not isinstance(item, int) or item < 0]
    return f"must be layer numbers from 0 up, not {shown(wrong[0])}" if wrong else ""


def pattern_of(check: Check) -> Check:
    """A mapping from module names or regular expressions to values that pass `check`."""

    def checked(value: Any) -> str:
        if not isinstance(value, Mapping):
            return f"must be a mapping from module names to numbers, not {shown(value)}"
        if len(value) > MAX_ITEMS:
            return f"has {len(value):,} keys; {MAX_ITEMS:,} are the most"
        for key, item in value.items():
            if problem := expression(key):
                return f"key {problem}"
            if problem := check(item):
                return f"{key!r} {problem}"
        return ""

    return checked


def optional(check: Check) -> Check:
    """Nothing, or what passes `check`."""
    return lambda value: "" if value is None else check(value)


def shown(value: Any) -> str:
    """A value as a user wrote it in YAML or JSON, cut short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    content = repr(value)
    return content if len(content) <= 60 else content[:57] + "..."
