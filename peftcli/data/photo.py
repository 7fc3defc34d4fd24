"""Pictures to train on: what the head of a file says at once, and the pixels when a batch needs them.

Shapes: S pixels a side.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.errors import DataError, RecipeError


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture whose pixels are not read yet.

    Attributes:
        name: of its file, for errors.
        data: the file's path, or what stands in it.
        width: in pixels.
        height: in pixels.
    """

    name: str
    data: Any
    width: int
    height: int

    def square(self, side: int) -> NDArray[np.uint8]:
        """(S, S, 3): the shorter side brought to S, and the middle of the longer one.

        Raises:
            DataError: it cannot be read any more.
        """
        with _opened(self.data, self.name) as picture:
            upright = _package("PIL.ImageOps").exif_transpose(picture).convert("RGB")
        whole = _package("PIL.ImageOps").fit(upright, (side, side), _package("PIL.Image").Resampling.LANCZOS)
        return np.asarray(whole, dtype=np.uint8)


def photo(value: Any) -> Photo:
    """What a column `image` holds: a file's path, or the Hub's {bytes, path}.

    Raises:
        DataError: it is something else, empty, or no picture.
        RecipeError: Pillow is not installed.
    """
    if isinstance(value, str) and value:
        return _headed(value, value)
    if isinstance(value, dict) and isinstance(content := value.get("bytes"), bytes):
        return _headed(content, str(value.get("path") or "the row's bytes"))
    if isinstance(value, dict) and isinstance(path := value.get("path"), str):
        if not Path(path).is_file():
            raise DataError(f"image: there is no file {path!r}")
        return _headed(path, path)
    kind = "null" if value is None else "empty" if value == "" else type(value).__name__
    raise DataError(f"image must be a file's path or {{bytes, path}}, and it is {kind}")


def _headed(data: str | bytes, name: str) -> Photo:
    with _opened(data, name) as picture:
        return Photo(name, data, *picture.size)


@contextmanager
def _opened(data: str | bytes, name: str) -> Iterator[Any]:
    image = _package("PIL.Image")
    try:
        # Pillow warns of files whose pixels would fill the memory, and refuses those that are larger still.
        with (
            warnings.catch_warnings(action="error", category=image.DecompressionBombWarning),
            image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture,
        ):
            yield picture
    except (image.DecompressionBombWarning, image.DecompressionBombError):
        raise DataError(
            f"image: {name} has more pixels than any picture to train on; make it smaller"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = "no picture that Pillow knows" if isinstance(error, image.UnidentifiedImageError) else error
        raise DataError(f"image: {name} cannot be read: {reason}") from None


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError("pillow is not installed; run `pip install 'peftcli[diffusion]'`") from error
