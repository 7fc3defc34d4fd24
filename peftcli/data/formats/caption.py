"""`caption`: {image, text?}: a picture, and the prompt that it is what to make of.

A picture is a file's path (from the folder of the rows' file), or what the Hub's Image columns hold: {bytes, path}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Captioned
from peftcli.data.pictures import picture


@row_format(("image",), optional=("text",), files=("image",))
def caption(row: Mapping[str, Any]) -> Captioned:
    """The picture and its text, where it has one."""
    text = row.get("text")
    return Captioned(picture(row["image"], "image"), None if text is None else string(text, "text"))
