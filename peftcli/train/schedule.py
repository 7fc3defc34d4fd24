"""The learning rate schedules of TrainingArguments, by name."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch.optim import Optimizer
from transformers import get_scheduler

from peftcli.errors import RecipeError, did_you_mean
from peftcli.recipe.names import METRIC_SCHEDULERS, SCHEDULERS
from peftcli.recipe.training import Training

_WITHOUT_WARMUP = ("constant", *METRIC_SCHEDULERS)
_WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")


class Scheduler(Protocol):
    """What the loop needs of PyTorch's and Transformers' schedulers."""

    def step(self, *metrics: float) -> None:
        """Goes on by one optimizer step, or by one evaluation with its metric."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes that back."""
        ...


def warmup_steps(settings: Training, total_steps: int) -> int:
    """`warmup_steps`, or its share of all steps where it is below 1."""
    if settings.warmup_steps < 1:
        return math.ceil(settings.warmup_steps * total_steps)
    return int(settings.warmup_steps)


def build_scheduler(
    optimizer: Optimizer, settings: Training, total_steps: int, *, greater_is_better: bool = False
) -> Scheduler:
    """The recipe's schedule over `total_steps`.

    Raises:
        RecipeError: for an unknown name, or arguments and a warmup that this schedule does not take.
    """
    name = settings.lr_scheduler_type
    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS)
        raise RecipeError(f"training.lr_scheduler_type: unknown schedule {name!r}; {hint}")
    if settings.warmup_steps and name in _WITHOUT_WARMUP:
        raise RecipeError(f"training.warmup_steps: {name} has no warmup; take linear or constant_with_warmup")
    arguments = dict(settings.lr_scheduler_kwargs or {})
    if arguments and name in _WITHOUT_ARGUMENTS:
        raise RecipeError(f"training.lr_scheduler_kwargs: {name} takes no arguments; leave them out")
    if name in METRIC_SCHEDULERS:
        arguments.setdefault("mode", "max" if greater_is_better else "min")
    try:
        scheduler: Scheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup_steps(settings, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=arguments,
        )
    except (TypeError, ValueError, ZeroDivisionError) as problem:
        raise RecipeError(f"training.lr_scheduler_kwargs: {name}: {problem}") from problem
    return scheduler
