"""`segmentation`: {image, mask}: a picture, and one of its size whose pixels are numbers of classes.

Either is a file's path (from the folder of the rows' file), or what the Hub's Image columns hold: {bytes, path}. A mask
is gray or has a palette; 255 is what has no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format
from peftcli.data.example import Segmented
from peftcli.data.pictures import picture


@row_format(("image", "mask"), targets=("mask",), files=("image", "mask"))
def segmentation(row: Mapping[str, Any]) -> Segmented:
    """The picture, and its mask."""
    mask = picture(row["mask"], "mask") if "mask" in row else None
    return Segmented(picture(row["image"], "image"), mask)
