"""Recordings: what the head of a file says at once, and the samples when a batch needs them.

Shapes: T samples of one channel.
"""

from __future__ import annotations

import importlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.errors import DataError, RecipeError

# What soundfile raises over what it cannot read: libsndfile's errors are RuntimeErrors.
_UNREADABLE = (RuntimeError, TypeError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording that is not read yet; its `len()` is in milliseconds, rounded up.

    Attributes:
        name: of its file, for errors.
        data: the file's path, what stands in it, or samples (T, channels).
        rate: samples a second.
        frames: samples of a channel.
        channels: how many.
        most: milliseconds that are used of it; None for all.
    """

    name: str
    data: Any
    rate: int
    frames: int
    channels: int
    most: int | None = None

    def __len__(self) -> int:
        whole = -(-self.frames * 1000 // self.rate)
        return whole if self.most is None else min(whole, self.most)

    def cut(self, milliseconds: int) -> Sound:
        """Its beginning."""
        return replace(self, most=milliseconds)

    def samples(self, rate: int) -> NDArray[np.float32]:
        """(T,) at the rate: channels averaged, resampled by a polyphase filter where its own rate is another.

        Raises:
            DataError: it cannot be read any more, or holds no numbers.
            RecipeError: a package is missing.
        """
        frames = self.frames if self.most is None else min(self.frames, self.most * self.rate // 1000)
        if isinstance(self.data, np.ndarray):
            read = self.data[:frames]
        else:
            try:
                read, _ = _package("soundfile").read(
                    _opened(self.data), frames=frames, dtype="float32", always_2d=True
                )
            except _UNREADABLE as error:
                raise DataError(f"audio: {self.name} cannot be read: {_said(error)}") from None
        if not len(read):
            raise DataError(f"audio: {self.name} has no samples behind its head")
        mono: NDArray[np.float32] = read.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise DataError(f"audio: {self.name} has samples that are no finite numbers")
        if self.rate == rate:
            return mono
        shared = math.gcd(rate, self.rate)
        resampled = _package("scipy.signal").resample_poly(mono, rate // shared, self.rate // shared)
        return np.asarray(resampled, dtype=np.float32)


def sound(value: Any) -> Sound:
    """What a column `audio` holds: a file's path, or the Hub's {bytes, path} or {array, sampling_rate}.

    Raises:
        DataError: it is something else, empty, or cannot be read.
        RecipeError: soundfile is not installed.
    """
    if isinstance(value, str) and value:
        return _file(value, value)
    if isinstance(value, dict) and value.get("array") is not None:
        return _array(value["array"], value.get("sampling_rate"))
    if isinstance(value, dict) and isinstance(content := value.get("bytes"), bytes):
        return _file(content, str(value.get("path") or "the row's bytes"))
    if isinstance(value, dict) and isinstance(path := value.get("path"), str):
        if not Path(path).is_file():
            raise DataError(f"audio: there is no file {path!r}")
        return _file(path, path)
    kind = "null" if value is None else "empty" if value == "" else type(value).__name__
    raise DataError(
        f"audio must be a file's path, {{bytes, path}} or {{array, sampling_rate}}, and it is {kind}"
    )


def _file(data: str | bytes, name: str) -> Sound:
    try:
        head = _package("soundfile").info(_opened(data))
    except _UNREADABLE as error:
        raise DataError(f"audio: {name} cannot be read: {_said(error)}") from None
    if head.frames <= 0:
        raise DataError(f"audio: {name} is empty: it has no samples")
    return Sound(name, data, int(head.samplerate), int(head.frames), int(head.channels))


def _array(array: Any, rate: Any) -> Sound:
    try:
        samples = np.asarray(array, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError("audio.array must be a list of numbers") from None
    if samples.ndim not in (1, 2):
        raise DataError(
            f"audio.array must be samples, or channels of samples, not of {samples.ndim} dimensions"
        )
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise DataError(f"audio.sampling_rate must be a whole number of samples a second, not {rate!r}")
    if not samples.size:
        raise DataError("audio.array is empty: it has no samples")
    if not np.isfinite(samples).all():
        raise DataError("audio.array has samples that are no finite numbers")
    columns = samples.reshape(-1, samples.shape[-1]).T
    return Sound("the row's array", columns, rate, *columns.shape)


def _opened(data: str | bytes) -> Any:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RecipeError(f"{package} is not installed; run `pip install 'peftcli[audio]'`") from error


def _said(error: BaseException) -> str:
    """Libsndfile's own words, without the name of what it read."""
    text = str(getattr(error, "error_string", "") or error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
