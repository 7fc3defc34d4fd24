"""Pictures: looked at once, when rows are read, so that a broken one is named then; read again for every batch.

Shapes: H rows of W pixels; S pixels a side.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.errors import DataError, RecipeError

# Pillow knows more, among them some that other programs are started for (EPS).
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
# Those of phones, whose further pictures are no frames, and which blur what stands in a mask.
_LOSSY = {"JPEG", "MPO"}
# What Pillow raises over what it cannot read.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = 1


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a picture tells.

    Attributes:
        size: (H, W), upright.
        mode: Pillow's name for what a pixel is: RGB, L (gray), P (palette), CMYK, …
        frames: how many pictures the file holds.
        turned: whether EXIF says that it lies on its side, or is mirrored.
    """

    size: tuple[int, int]
    mode: str
    frames: int
    turned: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is not read yet.

    Attributes:
        column: the row's, for errors.
        name: of its file, for errors.
        data: the file's path, or what stands in it.
    """

    column: str
    name: str
    data: str | bytes

    def look(self) -> Look:
        """Reads it once, as cheaply as its format allows.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        with self._opened() as image:
            width, height = image.size
            frames = 1 if image.format in _LOSSY else getattr(image, "n_frames", 1)
            mode = image.mode
            # A JPEG is read to its end all the same, at an eighth of its size.
            image.draft(None, (1, 1))
            image.load()
            orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
        on_side = orientation in range(5, 9)
        size = (width, height) if on_side else (height, width)
        return Look(size, mode, frames, orientation in range(2, 9))

    def pixels(self, mode: str) -> Any:
        """A Pillow image, upright and of a mode, of its first frame; as Transformers' pipelines read it.

        Raises:
            DataError: it cannot be read any more.
        """
        with self._opened() as image:
            return self._converted(_upright(image), mode)

    def square(self, side: int) -> NDArray[np.uint8]:
        """(S, S, 3), in colours: the shorter side brought to S, and the middle of the longer one.

        Raises:
            DataError: it cannot be read any more.
        """
        resampling = _pillow("Image").Resampling.LANCZOS
        return np.asarray(_pillow("ImageOps").fit(self.pixels("RGB"), (side, side), resampling))

    def numbers(self) -> NDArray[np.integer[Any]]:
        """(H, W): of a mask what each pixel's number is; a palette's colours have no part in it.

        Raises:
            DataError: its pixels are no numbers, or it cannot be read any more.
        """
        with self._opened() as image:
            if image.format in _LOSSY:
                raise self._refused("is a JPEG, which blurs numbers: save masks as PNG")
            if image.mode not in {"1", "L", "P", "I"} and not image.mode.startswith("I;16"):
                raise self._refused(
                    f"has pixels of {image.mode}, and a mask's are class numbers: save it in gray or with a palette"
                )
            return np.asarray(_upright(image)).astype(np.int32)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """As Pillow opens it; errors say which file it is."""
        module = _pillow("Image")
        module.init()
        known = [name for name in _FORMATS if name in module.OPEN]
        source = io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data
        try:
            with module.open(source, formats=known) as image:
                most = module.MAX_IMAGE_PIXELS
                if most is not None and image.width * image.height > most:
                    raise self._too_large(most)
                yield image
        except DataError:
            raise
        except (module.DecompressionBombError, module.DecompressionBombWarning):
            raise self._too_large(module.MAX_IMAGE_PIXELS) from None
        except module.UnidentifiedImageError:
            raise self._refused(
                f"is no picture that can be read here ({', '.join(known)}), or its head is broken"
            ) from None
        except _UNREADABLE as error:
            raise self._refused(f"cannot be read: {_said(error)}") from None

    def _converted(self, image: Any, mode: str) -> Any:
        if image.mode == mode:
            return image
        if image.mode in {"I", "F"}:
            raise self._refused(
                f"has pixels of 32 bits ({image.mode}), whose range nobody knows; save it with 8 or 16 bits"
            )
        if image.mode.startswith("I;16"):
            # Pillow would cut off at 255 and not scale.
            image = _pillow("Image").fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert(mode)

    def _too_large(self, most: int) -> DataError:
        return self._refused(
            f"has more than {most:,} pixels, which Pillow takes for an attack; make it smaller"
        )

    def _refused(self, what: str) -> DataError:
        return DataError(f"{self.column}: {self.name} {what}")


def picture(value: Any, column: str) -> Picture:
    """What a column of pictures holds: a file's path, or the Hub's {bytes, path}.

    Raises:
        DataError: it is something else, or empty.
    """
    if isinstance(value, str) and value:
        return Picture(column, value, value)
    if isinstance(value, dict) and isinstance(content := value.get("bytes"), bytes):
        return Picture(column, str(value.get("path") or "the row's bytes"), content)
    if isinstance(value, dict) and isinstance(path := value.get("path"), str):
        if not Path(path).is_file():
            raise DataError(f"{column}: there is no file {path!r}")
        return Picture(column, path, path)
    kind = "null" if value is None else "empty" if value == "" else type(value).__name__
    raise DataError(f"{column} must be a file's path or {{bytes, path}}, and it is {kind}")


def look_at(pictures: Sequence[Picture]) -> list[Look]:
    """A look at each of them, several at a time.

    Raises:
        DataError: of the first that cannot be read.
        RecipeError: Pillow is not installed.
    """
    return at_once(Picture.look, pictures)


def at_once(read: Any, pictures: Sequence[Picture]) -> list[Any]:
    """What `read` gives of each of them; Pillow lets several threads work.

    Raises:
        DataError: of the first that cannot be read.
        RecipeError: Pillow is not installed.
    """
    _pillow("Image")
    workers = min(len(pictures), os.cpu_count() or 1, 8)
    # What Pillow warns of (odd EXIF data, and pictures that are refused for their size) is not the user's to mend.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(max(workers, 1)) as pool:
        return list(pool.map(read, pictures))


def _upright(image: Any) -> Any:
    image.load()
    return _pillow("ImageOps").exif_transpose(image)


def _pillow(module: str) -> Any:
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise RecipeError("pillow is not installed; run `pip install 'peftcli[vision]'`") from error


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
