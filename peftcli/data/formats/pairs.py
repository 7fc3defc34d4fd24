"""`pairs`: {source, target}: a text, and the one to write of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Pair
from peftcli.errors import DataError


@row_format(("source", "target"), targets=("target",))
def pairs(row: Mapping[str, Any]) -> Pair:
    """The two texts. A target may be empty: that nothing is to be written can be learnt."""
    source = string(row["source"], "source")
    if not source.strip():
        raise DataError("source is empty")
    return Pair(source, string(row["target"], "target") if "target" in row else None)
