"""An adapter's folder as it lies there: its config and the head of its weights' file. Its base is not needed.

Folders come from anywhere. Both files are bounded before they are read, pickles are not read at all, and every tensor
is checked against the file by safetensors' own reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from peftcli.adapters.config import (
    CONFIG_NAME,
    MOST_CONFIG_BYTES,
    WEIGHTS_NAME,
    PeftConfig,
    from_dict,
    read_json,
)
from peftcli.adapters.heads import DTYPES, MOST_HEAD_BYTES, check_head
from peftcli.errors import AdapterError
from peftcli.run.folder import require_adapter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_CONFIG_BYTES", "MOST_HEAD_BYTES", "Adapter", "Head", "is_finite", "read_adapter"]

# PEFT's and other tools' older files, which PyTorch reads by running what they say.
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


class Head(NamedTuple):
    """What the file's head says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with an adapter.

    Attributes:
        folder: where it is.
        values: the content of adapter_config.json, unchecked.
        heads: the tensors of its weights' file, by key.
        size: of that file, in bytes.
    """

    folder: Path
    values: dict[str, Any]
    heads: dict[str, Head]
    size: int

    def config(self) -> PeftConfig:
        """The config, checked.

        Raises:
            AdapterConfigError: where a field is wrong or not supported.
        """
        return from_dict(self.values, where=str(self.folder / CONFIG_NAME))

    @contextmanager
    def tensors(self) -> Iterator[Callable[[str], Tensor]]:
        """Gives what reads a tensor by its key.

        Raises:
            AdapterError: where the file cannot be read.
        """
        path = self.folder / WEIGHTS_NAME
        with _readable(path), safe_open(path, "pt") as file:
            yield file.get_tensor

    def not_finite(self) -> list[str]:
        """The tensors that hold infinities, or what is no number.

        Raises:
            AdapterError: where the file cannot be read.
        """
        with self.tensors() as read:
            return [key for key in self.heads if not is_finite(read(key))]


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers are."""
    if not tensor.is_floating_point():
        return True
    # Types of one byte have no such operation.
    return bool((tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all())


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        ModelError: there is no such folder, or no adapter in it.
        AdapterError: its files cannot be read, or only by running what they say.
    """
    require_adapter(folder)
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    values = read_json(config)
    if not weights.is_file():
        raise AdapterError(_missing(folder), where=str(folder))
    return Adapter(folder, values, _heads(weights), weights.stat().st_size)


def _missing(folder: Path) -> str:
    pickle = next((name for name in PICKLES if (folder / name).is_file()), None)
    if pickle is None:
        return f"has no {WEIGHTS_NAME}; name a folder with a whole adapter"
    return f"{pickle} is a pickle, which can run code when it is read; convert it to {WEIGHTS_NAME}"


def _heads(path: Path) -> dict[str, Head]:
    with _readable(path):
        check_head(path)
        with safe_open(path, "np") as file:
            slices = {key: file.get_slice(key) for key in sorted(file.keys())}
            return {
                key: Head(_dtype(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()
            }


def _dtype(name: str) -> str:
    return DTYPES.get(name, name.lower())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"is damaged or no safetensors file ({error}); get it again", where=str(path)
        ) from error
