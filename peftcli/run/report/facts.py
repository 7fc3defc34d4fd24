"""What a run's folder says about the run, whether it has ended, is under way, or broke off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.config import CONFIG_NAME, WEIGHTS_NAME
from peftcli.errors import ModelError, RecipeError
from peftcli.run.answers import RunAnswer
from peftcli.run.card import CARD_NAME
from peftcli.run.lock import LOCK_NAME, Lock, read_lock
from peftcli.run.report.history import METRICS, History, read_history
from peftcli.run.verdicts import Verdict, verdicts

CHECKPOINT_MARK, HELD_MARK = "trainer_state.json", ".peftcli.lock"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run. `letter` and `name` tell it from the others of a report."""

    letter: str
    name: str
    folder: Path
    lock: Lock
    history: History

    @property
    def finished(self) -> bool:
        """Whether it came to its end: the card is the last file of a run."""
        return (self.folder / CARD_NAME).is_file() and self.adapter_bytes is not None

    @property
    def is_held(self) -> bool:
        """Whether a process has it, or had it and was killed: others take their mark away when they end."""
        return (self.folder / HELD_MARK).is_file()

    @property
    def adapter_bytes(self) -> int | None:
        """The size of the adapter's weights, None where there is no adapter yet."""
        weights = self.folder / WEIGHTS_NAME
        return weights.stat().st_size if weights.is_file() else None

    @property
    def evaluated_at(self) -> float | None:
        """The step of the evaluation that tells of the weights that are there: the last, or the best."""
        steps = self.history.evaluations
        training = mapping(self.lock.recipe.get("training"))
        if not steps or not (self.finished and training.get("load_best_model_at_end") is True):
            return steps[-1] if steps else None
        name = str(training.get("metric_for_best_model") or "loss").removeprefix("eval_")
        greater = training.get("greater_is_better")
        sign = 1 if (not name.endswith("loss") if greater is None else greater) else -1
        curve = self.history.curves.get(f"eval_{name}")
        # Of equal ones the first is kept, and so does max.
        return (
            max(zip(curve.values, curve.steps, strict=True), key=lambda point: sign * point[0])[1]
            if curve
            else steps[-1]
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation of the weights that are there."""
        step = self.evaluated_at
        found = (
            {} if step is None else {name: curve.at(step) for name, curve in self.history.evaluated.items()}
        )
        return {name: value for name, value in found.items() if value is not None}

    @property
    def verdicts(self) -> list[Verdict]:
        """What becomes of the gates; those that say nothing are left out."""
        judged = []
        for metric, text in mapping(self.lock.recipe.get("gates")).items():
            try:
                judged += verdicts({metric: text}, self.metrics)
            except (ValueError, TypeError):  # a lock that was written by other hands
                continue
        return judged

    def as_dict(self) -> RunAnswer:
        """For `--json`."""
        history = self.history
        return {
            "folder": str(self.folder),
            "finished": self.finished,
            "steps": _whole(history.last_step),
            "epoch": history.last("epoch"),
            "loss": history.last("loss"),
            "metrics": self.metrics,
            "evaluated_at": _whole(self.evaluated_at),
            "seconds": history.seconds,
            "tokens": _whole(history.last("tokens")),
            "peak_memory_bytes": _whole(history.peak("peak_memory_bytes")),
            "adapter_bytes": self.adapter_bytes,
            "gates": {f"{each.metric} {each.bound}": each.passed for each in self.verdicts},
            "lines_passed_over": history.passed_over,
        }


Runs = Sequence[RunFacts]


def _whole(count: float | None) -> int | None:
    return None if count is None else round(count)


def mapping(value: object) -> dict[str, Any]:
    """A mapping as it is, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def open_runs(folders: Sequence[Path]) -> list[RunFacts]:
    """The runs in these folders.

    Raises:
        ModelError: one of them holds no run.
        RecipeError: too many, or one is named twice.
    """
    if len(folders) > len(LETTERS):
        raise RecipeError(f"a report compares {len(LETTERS)} runs at most; {len(folders)} are named")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise RecipeError(f"{str(folder)!r} is named twice; name each run once")
    names = [place.name or str(place) for place in places]
    return [
        RunFacts(
            letter=letter,
            name=name if names.count(name) == 1 else str(folder),
            folder=folder,
            lock=_lock(folder),
            history=read_history(folder),
        )
        for letter, name, folder in zip(LETTERS, names, folders, strict=False)
    ]


def _lock(folder: Path) -> Lock:
    require_run(folder)
    return read_lock(folder) or Lock(recipe={}, base={}, data={}, versions={})


def require_run(folder: Path) -> None:
    """Refuses a folder that no run has written.

    Raises:
        ModelError: saying what to name instead.
    """
    shown = repr(str(folder))
    if not folder.is_dir():
        what = (
            f"{shown} is a file; name the run's folder" if folder.is_file() else f"there is no folder {shown}"
        )
        raise ModelError(what)
    if (folder / CHECKPOINT_MARK).is_file():
        raise ModelError(f"{shown} is a checkpoint; name the folder of its run: {str(folder.parent)!r}")
    if (folder / LOCK_NAME).is_file() or (folder / METRICS).is_file():
        return
    if (folder / CONFIG_NAME).is_file():
        raise ModelError(
            f"{shown} holds an adapter, but neither {LOCK_NAME} nor {METRICS} of a run that made it"
        )
    raise ModelError(f"{shown} is no run: it has neither {LOCK_NAME} nor {METRICS}; name a run's output_dir")
