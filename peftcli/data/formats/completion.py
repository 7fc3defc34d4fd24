"""`completion`: {prompt, completion}. The two are joined as they are, with nothing between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Completion


@row_format(("prompt", "completion"))
def completion(row: Mapping[str, Any]) -> Completion:
    """The prompt and its completion."""
    return Completion(string(row["prompt"], "prompt"), string(row["completion"], "completion"))
