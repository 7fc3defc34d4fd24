"""`text`: {text}. Plain text to learn as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Text


@row_format(("text",))
def text(row: Mapping[str, Any]) -> Text:
    """The text as it is."""
    return Text(string(row["text"], "text"))
