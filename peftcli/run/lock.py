"""recipe.lock.yaml: what a run really was. The recipe as resolved, versions, and fingerprints of base and data.

`generate`, `eval` and `push` need nothing but the folder it stands in. It is also a recipe's twin: what stands
under `recipe:` trains as it is.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftcli.errors import ModelError, RecipeError
from peftcli.files import write_text
from peftcli.recipe.schema import Recipe
from peftcli.recipe.source import parse, to_yaml

LOCK_NAME = "recipe.lock.yaml"
# Far above what a run of thousands of files writes: a lock may come from a stranger.
MAX_CHARACTERS = 4_000_000
PACKAGES = (
    "peftcli", "torch", "transformers", "tokenizers", "accelerate", "datasets", "safetensors", "pydantic", "gguf"
)  # fmt: skip
_NO_LOCK = "is not a lock that peftcli wrote; put the original back"
HEADER = """\
# What this run really was: the recipe with every default, versions, and fingerprints of base and data.
# Written by peftcli; `peftcli generate --adapter` reads it.
"""


@dataclass(frozen=True, slots=True)
class Lock:
    """The parts of the file; `chat_template` is the text that prompts are rendered with, None where there is none."""

    recipe: dict[str, Any]
    base: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    chat_template: str | None = None

    def changes_since(self, older: Lock) -> list[str]:
        """What differs from an earlier lock, one line a key: `training.learning_rate: 0.001, was 0.0001`."""
        now, then = flatten(self.as_dict()), flatten(older.as_dict())
        missing = "not set"
        return [
            f"{key}: {now.get(key, missing)}, was {then.get(key, missing)}"
            for key in sorted(now.keys() | then.keys())
            if now.get(key, missing) != then.get(key, missing)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The file's content as plain values."""
        return {
            "recipe": self.recipe,
            "base": self.base,
            "data": self.data,
            "versions": self.versions,
            "chat_template": self.chat_template,
        }


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists of mappings count by position."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = {str(i): item for i, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def installed_versions() -> dict[str, str]:
    """Python and the packages a run's numbers depend on; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def make_lock(
    recipe: Recipe, *, base: dict[str, Any], data: dict[str, Any], chat_template: str | None
) -> Lock:
    """The lock of a run that is about to start."""
    resolved = recipe.model_dump(mode="json")
    return Lock(resolved, base, data, installed_versions(), chat_template)


def write_lock(folder: Path, lock: Lock) -> None:
    """Writes the lock into a run's folder."""
    write_lock_file(folder / LOCK_NAME, lock)


def write_lock_file(path: Path, lock: Lock) -> None:
    """Writes the lock to a file."""
    write_text(path, HEADER + to_yaml(lock.as_dict()))


def beside(recipe: Path) -> Path:
    """Where the lock of a recipe stands that `train --locked` repeats: NAME.lock.yaml."""
    return recipe.with_suffix(".lock.yaml")


def read_lock(folder: Path) -> Lock | None:
    """The lock in `folder`, None where there is none.

    Raises:
        ModelError: for a file that is not a lock.
    """
    return read_lock_file(folder / LOCK_NAME)


def read_lock_file(path: Path) -> Lock | None:
    """The lock that a file holds; as `read_lock`."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            content, _, problems = parse(file.read(MAX_CHARACTERS), str(path))
        lock = Lock(**content)
    except (RecipeError, UnicodeDecodeError, TypeError) as error:
        raise ModelError(_NO_LOCK, where=str(path)) from error
    parts = (lock.recipe, lock.base, lock.data, lock.versions)
    if problems or not all(isinstance(part, dict) for part in parts):
        raise ModelError(_NO_LOCK, where=str(path))
    return lock
