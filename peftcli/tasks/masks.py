"""Masks: classes for every pixel of a picture, from what a model says of a smaller one, and as a PNG to look at.

Shapes: C classes, H rows of W pixels of the picture, h rows of w of what the model says.
"""

from __future__ import annotations

import colorsys
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

NO_CLASS = 255
"""The number of a mask's pixels that are neither trained nor scored."""
# Classes that are made as large as the picture at once.
_AT_ONCE = 16
# Steps of this share of the circle give every class a hue of its own.
_GOLDEN = (5**0.5 - 1) / 2


def likeliest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The likeliest class of each pixel: (C, h, w) to (H, W).

    As Transformers' processors do it, made larger by bilinear interpolation first; but some classes at a time, since
    all of a large picture's would take gigabytes.
    """
    best = highest = None
    for first in range(0, len(logits), _AT_ONCE):
        part = logits[None, first : first + _AT_ONCE].float()
        values, found = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0].max(0)
        if best is None or highest is None:
            best, highest = found, values
        else:
            best = torch.where(values > highest, found + first, best)
            highest = torch.maximum(values, highest)
    assert best is not None
    return best


def nearest(numbers: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A mask in another size: (H, W) to (h, w), each pixel the nearest one's number."""
    import PIL.Image

    height, width = size
    image = PIL.Image.fromarray(numbers.astype(np.int32))
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.NEAREST))


def png(numbers: NDArray[Any], classes: int) -> bytes:
    """A mask as a PNG whose pixels are the classes' numbers, in colours of a palette; many are shown in gray."""
    import PIL.Image

    if classes <= NO_CLASS:
        image = PIL.Image.fromarray(numbers.astype(np.uint8))
        image.putpalette(_palette(classes))
    else:
        image = PIL.Image.fromarray(numbers.astype(np.uint16))
    with io.BytesIO() as file:
        image.save(file, "PNG", optimize=False)
        return file.getvalue()


def _palette(classes: int) -> bytes:
    """Black for the first class, which is the ground mostly, and for each other one a bright colour."""
    colours = [(0.0, 0.0, 0.0)]
    colours += [colorsys.hsv_to_rgb(at * _GOLDEN % 1, 0.7, 0.95) for at in range(1, classes)]
    return bytes(round(255 * part) for colour in colours for part in colour)
