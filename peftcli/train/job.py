"""What training is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from torch import nn

from peftcli.recipe.training import Training
from peftcli.tasks.base import Task
from peftcli.train.feed import MapRows, StreamRows


@dataclass(frozen=True)
class Job:
    """What to train on what, and how.

    Attributes:
        model: with its adapter; parameters that require a gradient are trained.
        task: batches, loss and metrics.
        train_rows: encoded rows, map-style (with `lengths`) or a stream (with `rows(epoch)`).
        eval_rows: encoded rows, map-style.
        settings: the recipe's `training`.
        output_dir: for metrics.jsonl and checkpoint-N folders; it must be one folder for all processes.
        begin: called in the first process when all is ready for the first step, before anything is written.
        save_adapter: writes the adapter, and what inference needs beside it, to a folder.
        load_adapter: reads the adapter's weights from such a folder into `model`.
        resume_from: the checkpoint to go on from.
        gated: metrics that will be asked for at the end, as `eval_…`: a name that is not evaluated is said at once.
        console: where to say what happens.
    """

    model: nn.Module
    task: Task
    train_rows: MapRows | StreamRows
    eval_rows: MapRows | None
    settings: Training
    output_dir: Path
    save_adapter: Callable[[Path], None]
    load_adapter: Callable[[Path], None]
    begin: Callable[[], None] = lambda: None
    resume_from: Path | None = None
    gated: tuple[str, ...] = ()
    console: Console = field(default_factory=lambda: Console(stderr=True))


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        global_step: optimizer steps made, those before a resume included.
        epoch: passes over the rows.
        train_loss: mean over all trained tokens.
        best_metric: the best value of metric_for_best_model; None where nothing depends on it.
        best_checkpoint: the folder of that value.
        last_eval: the last evaluation's `eval_…` values.
        seconds: of training, without evaluations and checkpoints.
        tokens: trained tokens seen.
        peak_memory_bytes: on the GPU, else of this process.
        is_main_process: whether this process is the one that writes.
    """

    global_step: int
    epoch: float
    train_loss: float
    best_metric: float | None
    best_checkpoint: Path | None
    last_eval: dict[str, float]
    seconds: float
    tokens: int
    peak_memory_bytes: int
    is_main_process: bool
