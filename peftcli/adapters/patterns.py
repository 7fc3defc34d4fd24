"""Regular expressions of an adapter's config: bounded in time, since configs come from strangers.

Python's own `re` cannot be stopped, and `(a+)+b` keeps it busy for years. These are matched by `regex`, which every
Transformers brings, under a limit of time; what it means by an expression is what `re` means.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import regex

from peftcli.errors import AdapterError

# Seconds of processor time that slow matches of this process may take in all. An honest match takes microseconds.
BUDGET = 5.0
SLOW = 0.001
_spent = [0.0]


class Expression:
    """A regular expression over names of modules.

    Raises:
        AdapterError: where it cannot be compiled, or, at a match, where it takes too long.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._compiled = regex.compile(text)
        except (regex.error, RecursionError, OverflowError) as error:
            raise AdapterError(f"{_short(text)} is not a regular expression: {error}") from error

    def fullmatch(self, name: str) -> Any:
        """As `re.fullmatch`."""
        return self._bounded(self._compiled.fullmatch, name)

    def match(self, name: str) -> Any:
        """As `re.match`."""
        return self._bounded(self._compiled.match, name)

    def _bounded(self, match: Any, name: str) -> Any:
        begun = time.thread_time()
        try:
            return match(name, timeout=max(SLOW, BUDGET - _spent[0]))
        except (TimeoutError, MemoryError) as error:
            raise AdapterError(
                f"the expression {_short(self.text)} takes too long to match a name; write a simpler one"
            ) from error
        finally:
            took = time.thread_time() - begun
            if took > SLOW:
                _spent[0] += took


def matches(key: str, name: str) -> bool:
    """PEFT's rule: the expression fits the whole name, or its end after a dot."""
    return _ending(key).match(name) is not None


def by_pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first key that fits."""
    return next((value for key, value in pattern.items() if matches(key, name)), default)


@lru_cache(maxsize=16_384)
def _ending(key: str) -> Expression:
    return Expression(rf"(.*\.)?({key})$")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
