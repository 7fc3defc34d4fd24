"""Evaluation: every row once, whatever the number of processes, sums first and one division at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from peftcli.errors import RecipeError, did_you_mean
from peftcli.recipe.training import Training
from peftcli.tasks.base import Evaluated, Task
from peftcli.tasks.unwrapped import evaluating
from peftcli.train.feed import Batch, on_device


def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch], accelerator: Accelerator, settings: Training
) -> dict[str, float]:
    """`eval_loss` and the task's other metrics over this process's batches and those of all others.

    The means are sums over trained tokens (or rows) divided by their number, without label smoothing; the others
    the task computes from the records of all rows.
    """
    totals: dict[str, Tensor] = {}
    records: list[Any] = []
    with evaluating(model):
        for batch in batches:
            found = _evaluated(model, task, on_device(batch, accelerator.device), accelerator, settings)
            records += found.records
            for name, pair in found.sums.items():
                both = torch.stack([part.to(sum_type(accelerator.device)) for part in pair])
                totals[name] = totals[name] + both if name in totals else both
    means = _means(totals, accelerator)
    if settings.prediction_loss_only:
        return means
    scores = task.score(gather_object(records))
    return means | {f"eval_{name}": float(value) for name, value in scores.items()}


def check_metrics(
    wanted: Mapping[str, str],
    *,
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    settings: Training,
) -> None:
    """Looks at one batch whether an evaluation will have these metrics, before hours are spent on training.

    Args:
        wanted: the recipe's key that asks for a metric, to the metric's name.
        model: as for `evaluate`, and so are the others.
        task: the task.
        batches: the evaluation's; one is looked at.
        accelerator: of this process.
        settings: the recipe's.

    Raises:
        RecipeError: with the names that there are.
    """
    found = evaluate(
        model, task, [batch for batch, _ in zip(batches, range(1), strict=False)], accelerator, settings
    )
    for key, name in wanted.items():
        if name not in found:
            raise RecipeError(f"{key}: there is no {name!r}; {did_you_mean(name, found)}")


def sum_type(device: torch.device) -> torch.dtype:
    """The type to add many numbers up in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _evaluated(
    model: nn.Module, task: Task, batch: Batch, accelerator: Accelerator, settings: Training
) -> Evaluated:
    with _autocast(accelerator, settings):
        if settings.prediction_loss_only:
            return Evaluated({"loss": task.loss(model, batch)})
        return task.metrics(model, batch)


def _autocast(accelerator: Accelerator, settings: Training) -> AbstractContextManager[None]:
    kind = accelerator.device.type
    if settings.bf16_full_eval:
        return torch.autocast(kind, dtype=torch.bfloat16)
    if settings.fp16_full_eval:
        return torch.autocast(kind, dtype=torch.float16)
    context: AbstractContextManager[None] = accelerator.autocast()
    return context


def _means(totals: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    # A process without a batch does not know the names, but must take part.
    names = sorted(set(gather_object(list(totals))), key=lambda name: (name != "loss", name))
    nothing = torch.zeros(2, dtype=sum_type(accelerator.device), device=accelerator.device)
    sums = accelerator.reduce(torch.stack([totals.get(name, nothing) for name in names]), "sum")
    return {
        f"eval_{name}": value / max(weight, 1.0)
        for name, (value, weight) in zip(names, sums.tolist(), strict=True)
    }
