"""When to log, evaluate and save; which evaluation is the best; when more of them do not help."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftcli.recipe.names import METRIC_SCHEDULERS
from peftcli.recipe.training import Training
from peftcli.train.state import Progress


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True)
class Timetable:
    """The strategies of a recipe over a run of so many steps."""

    settings: Training
    total_steps: int

    def due(self, step: int, epochs: float, *, epoch_ends: bool) -> Due:
        """What follows a step, after `epochs` passes over the rows. A run's last step ends an epoch, too."""
        settings = self.settings
        final = step >= self.total_steps
        ends = epoch_ends or final

        def falls(strategy: str, every: float) -> bool:
            if strategy == "steps":
                return final or step % self._steps(every) == 0
            return strategy == "epoch" and ends

        delayed = settings.eval_delay > (epochs if settings.eval_strategy == "epoch" else step)
        eval_steps = settings.logging_steps if settings.eval_steps is None else settings.eval_steps
        return Due(
            log=falls(settings.logging_strategy, settings.logging_steps)
            or (settings.logging_first_step and step == 1),
            evaluate=falls(settings.eval_strategy, eval_steps) and not delayed,
            save=falls(settings.save_strategy, settings.save_steps),
        )

    def _steps(self, every: float) -> int:
        """A number of steps, or a share of all where it is below 1."""
        return max(1, math.ceil(self.total_steps * every)) if every < 1 else int(every)


def best_metric_name(settings: Training) -> str:
    """The evaluation's key that tells better from worse."""
    name = settings.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"


def greater_is_better(settings: Training) -> bool:
    """Whether a greater value of that metric is the better one."""
    if settings.greater_is_better is not None:
        return settings.greater_is_better
    return not best_metric_name(settings).endswith("loss")


def needs_best_metric(settings: Training) -> bool:
    """Whether anything in the recipe depends on that metric."""
    return (
        settings.load_best_model_at_end
        or settings.metric_for_best_model is not None
        or settings.save_strategy == "best"
        or settings.early_stopping_patience is not None
        or settings.lr_scheduler_type in METRIC_SCHEDULERS
    )


def judge(progress: Progress, value: float, settings: Training) -> bool:
    """Takes an evaluation's metric into `progress`; says whether it is the best so far."""
    best = progress.best_metric
    gain = math.inf if best is None else (value - best) * (1 if greater_is_better(settings) else -1)
    if math.isnan(value):
        gain = -math.inf  # an undefined metric is never the best, not even the first
    progress.worse_evaluations = (
        0 if gain > settings.early_stopping_threshold else progress.worse_evaluations + 1
    )
    if gain > 0:
        progress.best_metric, progress.best_global_step = value, progress.global_step
    return gain > 0


def is_exhausted(progress: Progress, settings: Training) -> bool:
    """Whether early stopping ends the run."""
    patience = settings.early_stopping_patience
    return patience is not None and progress.worse_evaluations >= patience
