"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Characters of a path, and bytes of a part of one.
MAX_PATH, MAX_PART = 4096, 255


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: `$XDG_CACHE_HOME/peftcli/NAME`, or the same under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "peftcli" / name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file in the same folder; what is written there becomes `path` at the end.

    A reader sees the old file or the new one, never a part; after an error the old one stands untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # safetensors writes files that only their owner may read, whatever the umask says.
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Takes away temporary files that processes have left in a folder which were killed while they wrote."""
    for path in folder.glob(".*.tmp"):
        owner = path.name.split(".")[-2]
        if path.is_file() and owner.isdecimal() and not _lives(int(owner)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder: what is written into the temporary one beside it becomes `folder` at the end.

    A folder that was there goes only after the new one is on the disk; after an error it stands untouched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                # As above: what the umask lets a folder have, less what only folders need.
                path.chmod(temporary.stat().st_mode & 0o666)
            flush(path)
        flush(temporary)
        if folder.exists():
            folder.rename(aside)
        temporary.rename(folder)
        flush(folder.parent)
    finally:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        for left in (temporary, aside):
            shutil.rmtree(left, ignore_errors=True)


def is_path(text: str) -> bool:
    """Whether a file system takes a text as a path: by its length."""
    parts = text.encode("utf-8", "surrogatepass").split(b"/")
    return len(text) <= MAX_PATH and all(len(part) <= MAX_PART for part in parts)


def flush(path: Path) -> None:
    """Makes the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` (UTF-8) in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: Path, tensors: dict[str, Tensor], head: Mapping[str, str] | None = None) -> None:
    """Replaces `path` by a safetensors file in one step.

    Args:
        path: the file.
        tensors: by key.
        head: metadata; by default what Transformers and PEFT write. Of several entries safetensors writes any first.

    Raises:
        OSError: where it cannot be written; safetensors itself has another error for a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(head or {"format": "pt"}))
        except SafetensorError as error:
            # It tells the system's number at its end: "… (os error 28)".
            number = re.search(r"\(os error (\d+)\)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error
