"""Checkpoints: what resuming needs, written whole or not at all, and checked before it is used.

    checkpoint-12/
      adapter_model.safetensors …         what `save_adapter` writes
      trainer_state.json                  `Progress`: where the run stands, its best, its log
      training_state.json, .safetensors   optimizer, schedule, loss scaler, random generators of every process,
                                          what the adapter's method has learned (AdaLoRA)
      manifest.json                       the SHA-256 of each file above

The folder is written under another name, flushed to the disk and then renamed; `manifest.json` tells a folder
that lost something later on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError

from peftcli.errors import AdapterError
from peftcli.files import flush, is_path
from peftcli.hub import first_line
from peftcli.train.trees import read_tree, write_tree

MANIFEST = "manifest.json"
PROGRESS = "trainer_state.json"
TRAINING = "training_state"

Say = Callable[[str], object]


@dataclass
class Progress:
    """Where a run stands after its last whole step.

    Attributes:
        global_step: optimizer steps made.
        epoch: whole epochs done.
        micro_batch: micro-batches of the next epoch that are done.
        passed: epochs as a decimal number, for people.
        loss_sum: token losses of all steps, added up.
        tokens: trained tokens of all steps.
        input_tokens: input tokens of all steps.
        logged_loss_sum: loss_sum at the last log line.
        logged_tokens: tokens at the last log line.
        logged_seconds: seconds at the last log line.
        best_metric: the best value of metric_for_best_model.
        best_global_step: the step of that value.
        worse_evaluations: evaluations in a row without a better value, for early stopping.
        skipped_steps: steps whose loss or gradient was not finite (training.on_nonfinite: skip).
        seconds: training time so far, without evaluations and checkpoints.
        layout: what decides the rows of each micro-batch; a resumed run must have the same.
        log_history: the lines of metrics.jsonl.
    """

    global_step: int = 0
    epoch: int = 0
    micro_batch: int = 0
    passed: float = 0.0
    loss_sum: float = 0.0
    tokens: int = 0
    input_tokens: int = 0
    logged_loss_sum: float = 0.0
    logged_tokens: int = 0
    logged_seconds: float = 0.0
    best_metric: float | None = None
    best_global_step: int | None = None
    worse_evaluations: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    layout: dict[str, Any] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return output_dir / f"checkpoint-{step}"


def write_checkpoint(
    output_dir: Path,
    progress: Progress,
    training: dict[str, Any] | None,
    save_adapter: Callable[[Path], None],
) -> Path:
    """Writes checkpoint-N, whole or not at all, and gives its folder.

    Args:
        output_dir: the run's folder.
        progress: where the run stands; it names the step.
        training: the states that resuming needs; None for a checkpoint of the model alone.
        save_adapter: writes the adapter's files to a folder.
    """
    folder = checkpoint_folder(output_dir, progress.global_step)
    partial = output_dir / f".{folder.name}.partial"
    _clear(partial)
    partial.mkdir(parents=True)
    try:
        save_adapter(partial)
        _write_json(partial / PROGRESS, asdict(progress))
        if training is not None:
            write_tree(training, partial / TRAINING)
        digests = {file.relative_to(partial).as_posix(): _digest(file) for file in _files(partial)}
        _write_json(partial / MANIFEST, {"step": progress.global_step, "files": digests})
        for file in _files(partial):
            flush(file)
        flush(partial)
    except OSError:
        # A full disk needs the room.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _clear(folder)
    partial.rename(folder)
    flush(output_dir)
    return folder


def read_checkpoint(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """The progress and the training states of a checkpoint.

    Raises:
        AdapterError: where it is torn, or holds the model alone.
    """
    if flaw := torn(folder):
        raise AdapterError(f"the checkpoint {folder} is torn: {flaw}; resume from another one")
    if not (folder / f"{TRAINING}.json").exists():
        raise AdapterError(
            f"the checkpoint {folder} holds the model alone (training.save_only_model) and cannot be "
            "resumed; train anew"
        )
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        TypeAdapter(Progress).validate_python(content)
        return Progress(**content), read_tree(folder / TRAINING)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise AdapterError(f"the checkpoint {folder} cannot be read ({first_line(error)})") from error


def torn(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None for a whole one."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items()
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    for name, digest in files:
        if not is_path(name) or not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != digest:
            return f"{name} has changed since it was written"
    return None


def find_checkpoint(output_dir: Path, say: Say | None = None) -> Path | None:
    """The last whole checkpoint of a run, or None.

    Args:
        output_dir: the run's folder.
        say: gets a line for each torn checkpoint that is passed over.
    """
    for _, folder in reversed(list(checkpoints(output_dir))):
        flaw = torn(folder)
        if flaw is None:
            return folder
        if say is not None:
            say(f"{folder} is torn ({flaw}); going back to the checkpoint before it")
    return None


def checkpoints(output_dir: Path) -> Iterator[tuple[int, Path]]:
    """The step and folder of each checkpoint, oldest first."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    yield from sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def rotate_checkpoints(output_dir: Path, keep: int | None, best: Path | None) -> list[Path]:
    """Deletes the oldest checkpoints beyond `keep`, never the best nor the last one; gives those deleted."""
    if keep is None:
        return []
    folders = [folder for _, folder in checkpoints(output_dir)]
    spare = [folder for folder in folders[:-1] if folder != best]
    surplus = spare[: max(0, len(folders) - keep)]
    for folder in surplus:
        # A half-deleted checkpoint must not be taken for a whole one.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return surplus


def remove_partial(output_dir: Path) -> None:
    """Deletes what a run left that was killed while it wrote a checkpoint."""
    for path in output_dir.glob(".checkpoint-*.partial"):
        shutil.rmtree(path)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
