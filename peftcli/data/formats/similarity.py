"""`similarity`: {anchor, positive, negative?}: texts that mean the same, and texts that do not; or {…, score}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Similar
from peftcli.errors import DataError


@row_format(
    ("anchor", "positive"),
    optional=("negative", "score"),
    targets=("positive", "negative", "score"),
    predicting=("text",),
)
def similarity(row: Mapping[str, Any]) -> Similar:
    """A text, and how others stand to it; a row to predict on may call it `text`."""
    name = "anchor" if "anchor" in row else "text"
    anchor = _text(row[name], name)
    positive = _text(row["positive"], "positive") if "positive" in row else None
    negative = None if row.get("negative") is None else _text(row["negative"], "negative")
    score = None if row.get("score") is None else _score(row["score"])
    if score is not None and negative is not None:
        raise DataError("has a negative and a score; a score is of one pair: leave one of them out")
    if negative is not None and positive == negative:
        raise DataError("negative is the same text as positive")
    return Similar(anchor, positive, negative, score)


def _text(value: Any, what: str) -> str:
    if not (text := string(value, what)).strip():
        raise DataError(f"{what} is empty")
    return text


def _score(value: Any) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not -1 <= score <= 1:
        raise DataError(
            f"score must be a number from -1 to 1, as cosines are, not {value!r}; divide it by its largest"
        )
    return score
