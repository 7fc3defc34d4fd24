"""Rows longer than `data.max_length`, or than a column's own limit: refused, cut, dropped or split, always counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from peftcli.data.example import Encoder, Limit, Row, row_length
from peftcli.data.report import SourceReport
from peftcli.data.tokens import IGNORED
from peftcli.errors import DataError, RecipeError

# Tokenizers without a limit of their own say 10**30.
_NO_LIMIT = 10**9

_CHOICES = "set data.overflow to truncate, drop or split (text only)"


def effective_limit(max_length: int | None, model_max_length: int | None) -> int | None:
    """The longest row in tokens: the recipe's, else the model's; None where neither sets one."""
    if max_length is not None:
        return max_length
    return None if model_max_length is None or model_max_length >= _NO_LIMIT else model_max_length


def next_tokens(row: Row) -> int:
    """How many tokens of a row are trained to follow those before them; the first has nothing before it."""
    return int(np.count_nonzero(np.asarray(row["labels"][1:]) != IGNORED))


@dataclass(slots=True)
class _TooLong:
    """Rows that are longer than a limit, to be refused at once.

    Attributes:
        limit: theirs.
        first: where the first of them stands, with its length.
        count: how many there are.
        longest: of them.
    """

    limit: Limit
    first: str
    count: int = 0
    longest: int = 0

    def __str__(self) -> str:
        more = (
            f" ({self.count - 1:,} more rows are too long, the longest {self.longest:,})"
            if self.count > 1
            else ""
        )
        limit = self.limit
        advice = limit.advice or f"raise {limit.setting}"
        return f"{self.first} are more than {limit.key} {limit.tokens:,}{more}; {advice}"


@dataclass(slots=True)
class Overflow:
    """What happens to each row of a source; counts go into the source's report."""

    limit: int | None
    policy: str
    report: SourceReport
    encoder: Encoder
    too_long: dict[str, _TooLong] = field(default_factory=dict)
    """By setting."""

    def __post_init__(self) -> None:
        if self.policy == "split" and self.report.type != "text":
            raise RecipeError(
                f"data.overflow: 'split' is for type 'text'; {self.report.path} is '{self.report.type}': "
                "use truncate or drop"
            )
        if self.policy == "split" and self.limit is not None and self.limit < 3:
            raise RecipeError("data.max_length: pieces of fewer than 3 tokens cannot be trained on; raise it")

    def apply(self, row: Row, where: str) -> list[Row]:
        """The rows to train on instead of `row`; none where it is dropped, or refused later by `check`.

        Raises:
            DataError: where the row has no trained token.
        """
        if not self._trained(row):
            raise DataError("no token of the row is trained: what is to be learnt is empty", where=where)
        passed = self._passed(row)
        if not passed:
            return [row]
        if self.policy == "split":
            return self._split(row, row_length(row))
        if self.policy == "drop":
            self.report.dropped += 1
            return []
        if self.policy == "truncate":
            return self._truncate(row, passed)
        for limit, length in passed:
            first = f"{where}: {limit.shown(length)}"
            noted = self.too_long.setdefault(limit.setting, _TooLong(limit, first))
            noted.count += 1
            noted.longest = max(noted.longest, length)
        return []

    def _passed(self, row: Row) -> list[tuple[Limit, int]]:
        """The limits that the row passes, each with how long it is."""
        own = Limit("input_ids", "", self.limit, "data.max_length", self.encoder.cut)
        lengths = [(own, row_length(row))]
        lengths += [(limit, len(row[limit.column])) for limit in self.encoder.limits if limit.column in row]
        return [(limit, length) for limit, length in lengths if limit.passed(length)]

    def check(self) -> None:
        """Refuse rows that were too long, all at once.

        Raises:
            DataError: naming the first, their number and the longest.
        """
        if self.too_long:
            raise DataError(f"{'; '.join(map(str, self.too_long.values()))}, or {_CHOICES}")

    def _trained(self, row: Row) -> bool:
        return self.encoder.trained is None or self.encoder.trained(row) > 0

    def _truncate(self, row: Row, passed: list[tuple[Limit, int]]) -> list[Row]:
        cut = row
        for limit, _ in passed:
            assert limit.tokens is not None
            cut = limit.cut(cut, limit.tokens)
        if not self._trained(cut):
            self.report.dropped += 1
            return []
        self.report.truncated += 1
        keys = [limit.key for limit, _ in passed]
        self.report.truncated_at += [key for key in keys if key not in self.report.truncated_at]
        return [cut]

    def _split(self, row: Row, length: int) -> list[Row]:
        assert self.limit is not None
        cuts = list(range(0, length, self.limit))
        if length - cuts[-1] == 1:
            # A piece of one token has none to train: the piece before gives it one of its own.
            cuts[-1] -= 1
        pieces = [
            {key: value[start:end] for key, value in row.items()}
            for start, end in zip(cuts, [*cuts[1:], length], strict=True)
        ]
        self.report.split_rows += 1
        self.report.split_pieces += len(pieces)
        return pieces
