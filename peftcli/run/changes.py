"""What differs between a run and the one it goes on with (`--resume`), or the one it must repeat (`--locked`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftcli.errors import RecipeError
from peftcli.run.lock import Lock, beside, read_lock, read_lock_file, write_lock_file

Say = Callable[[str], object]

# What a resumed run cannot have otherwise than the run that it goes on with, whatever the user says.
FIXED = (
    "base.",
    "data.",
    "chat_template",
    "recipe.adapter.",
    "recipe.base_model",
    "recipe.data.",
    "recipe.task",
    "recipe.dtype",
    "recipe.quantization",
)
# What is not trained on: with --resume-anyway the run goes on.
EVALUATION = ("data.eval", "recipe.data.eval")
# Where things are, and with what they run: said, and nothing more.
PLACES = ("recipe.training.output_dir", "recipe.training.overwrite_output_dir")
VERSIONS = ("versions.",)
# What says where a base is, and not which one it is: that its fingerprint says.
BASE_PLACES = ("base.name: ", "base.path: ", "base.revision: ", "recipe.base_model: ", "recipe.revision: ")


def check_changes(
    lock: Lock, folder: Path, checkpoint: Path | None, say: Say, *, anyway: bool = False
) -> None:
    """Refuses to go on with a run as another one.

    Args:
        lock: the run that is to go on.
        folder: its folder.
        checkpoint: what it goes on from; None for a run that starts.
        say: gets a line for each change that is let pass.
        anyway: whether the user lets harmless ones pass.

    Raises:
        RecipeError: with what changed.
    """
    older = (read_lock(checkpoint) or read_lock(folder)) if checkpoint else None
    changes = list(_changes(lock, older)) if older else []
    if fixed := [
        change for change in changes if change.startswith(FIXED) and not change.startswith(EVALUATION)
    ]:
        raise RecipeError(f"--resume: {'; '.join(fixed)}; change it back, or train anew")
    others = [change for change in changes if not change.startswith(PLACES + VERSIONS)]
    if others and not anyway:
        raise RecipeError(
            f"--resume: changed since the run began: {'; '.join(others)}; change it back, or go on with it by "
            "--resume-anyway"
        )
    for change in changes:
        say(f"changed since the run began: {change}")


def check_locked(lock: Lock, recipe: Path) -> None:
    """Refuses to train anything else than the lock beside the recipe says.

    Raises:
        RecipeError: with what differs; or there is no lock.
    """
    path = beside(recipe)
    older = read_lock_file(path)
    if older is None:
        raise RecipeError(f"--locked: there is no {path}; write it by `peftcli check {recipe} --data --lock`")
    drift = [change for change in _changes(lock, older) if not change.startswith(PLACES)]
    if drift:
        raise RecipeError(
            f"--locked: this is not what {path} says: {'; '.join(drift)}; change it back, or write the lock anew by "
            f"`peftcli check {recipe} --data --lock`"
        )


def write_locked(lock: Lock, recipe: Path, say: Say) -> Path:
    """Writes the lock beside a recipe, and gives its path; what it changes of an older one is said.

    Raises:
        ModelError: what stands there is no lock of ours.
        RecipeError: it cannot be written.
    """
    path = beside(recipe)
    older = read_lock_file(path)
    for change in _changes(lock, older) if older is not None else ():
        say(f"changed in the lock: {change}")
    try:
        write_lock_file(path, lock)
    except OSError as error:
        raise RecipeError(f"--lock: {path} cannot be written: {error.strerror}") from error
    return path


def _changes(lock: Lock, older: Lock) -> Iterator[str]:
    """What differs, without files of rows and a base that were only moved."""
    same_rows = _digests(lock) == _digests(older)
    same_base = bool(lock.base) and lock.base.get("fingerprint") == older.base.get("fingerprint")
    for change in lock.changes_since(older):
        moved = ".sha256." in change or ".path: " in change or ".blank_lines." in change
        moved_rows = same_rows and moved and change.startswith(("data.", "recipe.data."))
        if not (moved_rows or (same_base and change.startswith(BASE_PLACES))):
            yield change


def _digests(lock: Lock) -> list[str]:
    """The hashes of all files of rows, in the order of their sources."""
    sources: list[Any] = [*(lock.data.get("train_sources") or []), *(lock.data.get("eval_sources") or [])]
    return [digest for source in sources for digest in (source.get("sha256") or {}).values()]
