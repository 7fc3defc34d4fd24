"""The base that an adapter names, as other programs can or cannot find it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli.errors import ModelError
from peftcli.models import package
from peftcli.run.adapter import Adapter
from peftcli.run.lint.finding import Finding

FIELD = "base_model_name_or_path"
# What stands in a command for a base that is to be filled in.
STAND_IN = "BASE"


def base_findings(adapter: Adapter, program: str, *, takes_gguf: bool) -> Iterator[Finding]:
    """Where the command must be completed by hand."""
    name = _name(adapter)
    if name is None:
        yield Finding(FIELD, "names no base", f"put its name for {STAND_IN} in the command", is_error=False)
    elif _is_here(name) and place(adapter) is None:
        yield Finding(
            FIELD,
            f"there is no {name!r} here",
            f"put its place for {STAND_IN} in the command",
            is_error=False,
        )
    elif gguf_file(adapter) is not None and not takes_gguf:
        yield Finding(
            FIELD,
            f"is a GGUF file, to which {program} adds no adapters",
            f"put the model that it was made of for {STAND_IN} in the command (in a recipe: base_model_id)",
            is_error=False,
        )


def place(adapter: Adapter) -> Path | None:
    """Where the base is on this machine; None for one on the Hub, or one that is not there."""
    name = _name(adapter)
    if name is None:
        return None
    try:
        path = package.locate(name) if name.startswith(package.SCHEME) else Path(name).expanduser()
    except (ModelError, RuntimeError):  # no such package; no such user's home
        return None
    return path.resolve() if path.exists() else None


def gguf_file(adapter: Adapter) -> Path | None:
    """The base's file, where it is a GGUF on this machine."""
    path = place(adapter)
    return path if path is not None and path.suffix.lower() == ".gguf" else None


def hub_id(adapter: Adapter) -> str | None:
    """The base's name on the Hub, where that is what the adapter has."""
    name = _name(adapter)
    return None if name is None or _is_here(name) or place(adapter) is not None else name


def servable(adapter: Adapter) -> str:
    """The base for a command: its folder, its name on the Hub, or what is to be replaced by either."""
    path = place(adapter)
    if path is not None and path.is_dir():
        return str(path)
    return hub_id(adapter) or STAND_IN


def _name(adapter: Adapter) -> str | None:
    name: Any = adapter.values.get(FIELD)
    return name if isinstance(name, str) and name else None


def _is_here(name: str) -> bool:
    """Whether a name can only mean a place on this machine."""
    return name.startswith(("/", ".", "~", package.SCHEME)) or name.lower().endswith(".gguf")
