"""`classification`: {text, text_pair?, label}. A label is a name or a number, or a list of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import labels, row_format, string
from peftcli.data.example import Labelled


@row_format(("text", "label"), optional=("text_pair",), targets=("label",))
def classification(row: Mapping[str, Any]) -> Labelled:
    """The text or texts, and what they are."""
    pair = row.get("text_pair")
    return Labelled(
        string(row["text"], "text"),
        None if pair is None else string(pair, "text_pair"),
        labels(row["label"]) if "label" in row else None,
    )
