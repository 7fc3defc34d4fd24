"""What is said about a name that means nothing: the nearest that means something."""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import Any

from peftcli.errors import AdapterError, PeftWarning, nearest


def check_new_name(adapter_name: str, taken: Container[str]) -> None:
    """Refuses what cannot name a new adapter: keys and folders hold the name."""
    if not adapter_name or "." in adapter_name or "/" in adapter_name:
        raise AdapterError(f"{adapter_name!r} cannot name an adapter; choose a name without dots and slashes")
    if adapter_name in taken:
        raise AdapterError(f"there is an adapter {adapter_name!r} already; choose another name")


def complain(message: str, *, strict: bool) -> None:
    """An error, or a warning where an adapter made elsewhere is loaded."""
    if strict:
        raise AdapterError(message)
    warnings.warn(message, PeftWarning, stacklevel=3)


def similar(name: str, names: Sequence[str]) -> str:
    """The module names that look most like one that matches nothing, as the end of a message."""
    endings = {".".join(full.split(".")[-name.count(".") - 1 :]) for full in names}
    close = nearest(name, sorted(ending for ending in endings if not ending.isdigit()))
    return f"; the nearest: {', '.join(close)}" if close else f"; the model has: {some(sorted(endings))}"


def some(items: Sequence[Any], limit: int = 12) -> str:
    """The first items, with an ellipsis where there are more."""
    shown = ", ".join(map(str, items[:limit]))
    return f"{shown}, …" if len(items) > limit else shown
