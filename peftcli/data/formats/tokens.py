"""`tokens`: {tokens, tags}, two lists of one length. A tag is a name, such as B-LOC, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import label, row_format, string
from peftcli.data.example import Tagged
from peftcli.errors import DataError


@row_format(("tokens", "tags"), targets=("tags",))
def tokens(row: Mapping[str, Any]) -> Tagged:
    """The words of a text, and their tags."""
    words = [string(word, f"tokens[{at}]") for at, word in enumerate(_list(row["tokens"], "tokens"))]
    if "tags" not in row:
        return Tagged(words, None)
    tags = [label(tag, f"tags[{at}]") for at, tag in enumerate(_list(row["tags"], "tags"))]
    if len(tags) != len(words):
        raise DataError(f"there are {len(words):,} tokens and {len(tags):,} tags; write a tag for each token")
    return Tagged(words, tags)


def _list(value: Any, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    kind = "null" if value is None else "text" if isinstance(value, str) else type(value).__name__
    raise DataError(f"{what} must be a list, an entry a word, not {kind}")
