"""What a command may not do, whatever it is fed: watched by Python's own audit events while it runs."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0
GIGABYTE = 2**20  # in the KiB that getrusage counts
_FORBIDDEN = {
    "socket.connect",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "pickle.find_class",
}
_armed: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _armed:
        return
    allowed, seen = _armed[-1]
    if event in _FORBIDDEN:
        seen.append(f"{event} {arguments!r}"[:200])
    elif event == "open" and _writes(arguments):
        path = os.path.realpath(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else ""
        if path and not path.startswith((str(allowed), "/dev/null", "/dev/tty")):
            seen.append(f"wrote {path}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


sys.addaudithook(_hook)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Within it: no writing outside the folder, no call, no code run, and time and memory within bounds."""
    seen: list[str] = []
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _armed.append((folder.resolve(), seen))
    try:
        yield
    finally:
        _armed.pop()
    assert not seen
    assert time.monotonic() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE
