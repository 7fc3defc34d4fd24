"""The folder that a run writes: whose it is, what an earlier run has left in it, and when that goes.

Nothing in it changes before the run is ready to make its first step: a typo must not cost the run before.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftcli.errors import RecipeError
from peftcli.files import clear_unfinished
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import TASK_FILES
from peftcli.run.lock import LOCK_NAME, Lock, write_lock
from peftcli.train.state import checkpoints, find_checkpoint

Say = Callable[[str], object]

METRICS, CURVES, CARD = "metrics.jsonl", "loss.svg", "README.md"
# Any of these in a folder says that a run has been there.
MARKS = ("adapter_config.json", LOCK_NAME, METRICS, "checkpoint-*")
# What a new run takes away of an older one.
LEFT = (
    *MARKS,
    "adapter_model.safetensors",
    *TASK_FILES,
    "report.html",
    CARD,
    CURVES,
    "abandoned-checkpoint-*",
)
HELD = ".peftcli.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder for as long as this process lives.

    Raises:
        RecipeError: another run is in it now, or it cannot be written.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / HELD).open("w")
    except OSError as error:
        raise RecipeError(f"training.output_dir: {folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"training.output_dir: another run is writing {folder} now; wait for it, or name another folder"
            ) from None
        try:
            clear_unfinished(folder)
            yield
        finally:
            # Where the folder cannot be written any more, that is not the error to tell; nobody holds what is left.
            with suppress(OSError):
                (folder / HELD).unlink(missing_ok=True)
                if new and not any(folder.iterdir()):
                    folder.rmdir()


def check_folder(recipe: Recipe, resume: bool | Path, say: Say) -> Path | None:
    """Looks whether the run may have its folder, and gives the checkpoint to go on from.

    Raises:
        RecipeError: another run is in it, it is the base's own, or the checkpoint is not there.
    """
    folder = Path(recipe.training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"training.output_dir: {folder} is a file; name a folder")
    if folder.is_dir() and (folder / "config.json").is_file():
        raise RecipeError(f"training.output_dir: {folder} holds a model; name another folder for its adapter")
    if resume:
        return _resumed(folder, resume, say)
    if (earlier := remains(folder, MARKS)) and not recipe.training.overwrite_output_dir:
        raise RecipeError(
            f"training.output_dir: {folder} already holds a run ({earlier[0].name}); go on with it by --resume, "
            "replace it by --set training.overwrite_output_dir=true, or name another folder"
        )
    return None


def remains(folder: Path, marks: tuple[str, ...] = LEFT) -> list[Path]:
    """What an earlier run has left in the folder."""
    return sorted(path for mark in marks for path in folder.glob(mark))


def clear(folder: Path) -> None:
    """Takes away what an earlier run has left."""
    for path in remains(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(folder: Path, checkpoint: Path, say: Say) -> None:
    """Renames the checkpoints after the one that is resumed: the next --resume must not go on with them."""
    steps = {path.resolve(): step for step, path in checkpoints(folder)}
    here = steps.get(checkpoint.resolve())
    for path, step in steps.items():
        if here is not None and step > here:
            aside = path.with_name(f"abandoned-{path.name}")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
            say(f"{path.name} is of the branch that is left: it is {aside.name} now")


def found(folder: Path, resume: bool | Path) -> Path | None:
    """What the first process has found, for the others."""
    if isinstance(resume, Path):
        return resume
    return find_checkpoint(folder) if resume else None


def begin(folder: Path, lock: Lock, checkpoint: Path | None, say: Say) -> None:
    """Makes the folder this run's: what is of another one goes, and the lock is written."""
    if checkpoint is None:
        clear(folder)
    else:
        set_aside(folder, checkpoint, say)
    write_lock(folder, lock)


def _resumed(folder: Path, resume: bool | Path, say: Say) -> Path | None:
    if isinstance(resume, Path) and not resume.is_dir():
        near = sorted(path.name for path in folder.glob("checkpoint-*"))
        raise RecipeError(
            f"--resume: there is no checkpoint {resume}; {folder} has: {', '.join(near) or 'none'}"
        )
    checkpoint = resume if isinstance(resume, Path) else find_checkpoint(folder, say)
    say(
        f"resuming from {checkpoint}"
        if checkpoint
        else f"{folder} has no whole checkpoint: starting from the start"
    )
    return checkpoint
