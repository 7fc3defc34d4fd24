"""`image`: {image, label}: a picture, and what it shows. A label is a name or a number, or a list of names.

A picture is a file's path (from the folder of the rows' file), or what the Hub's Image columns hold: {bytes, path}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import labels, row_format
from peftcli.data.example import Pictured
from peftcli.data.pictures import picture


@row_format(("image", "label"), targets=("label",), files=("image",))
def image(row: Mapping[str, Any]) -> Pictured:
    """The picture, and what it shows."""
    return Pictured(picture(row["image"], "image"), labels(row["label"]) if "label" in row else None)
