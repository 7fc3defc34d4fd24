"""The work of `peftcli check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.errors import AdapterError, ModelError, RecipeError
from peftcli.recipe.read import read_recipe
from peftcli.recipe.schema import Recipe, Source
from peftcli.run.answers import CheckAnswer

if TYPE_CHECKING:
    from peftcli.data.report import DataReport
    from peftcli.run.inputs import Inputs
    from peftcli.run.lock import Lock
    from peftcli.run.memory.plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class CheckReport:
    """A recipe that is well-formed, and what it will train."""

    path: Path
    recipe: Recipe
    data: DataReport | None = None
    memory: MemoryPlan | None = None
    lock: Lock | None = None

    def lines(self) -> list[str]:
        """A short summary for a person."""
        recipe = self.recipe
        training = recipe.training
        length = (
            f"{training.max_steps} steps"
            if training.max_steps > 0
            else f"{training.num_train_epochs:g} epochs"
        )
        targets = recipe.adapter.get("target_modules")
        on = f" on {targets if isinstance(targets, str) else ', '.join(targets)}" if targets else ""
        parts = [part for part in (self.data, self.memory) if part is not None]
        data = [f"  {line}" for part in parts for line in part.lines()]
        return [
            f"{self.path}: ok",
            f"  base      {recipe.base_model} ({recipe.task_type})",
            f"  adapter   {recipe.adapter['peft_type']}{on}",
            f"  train     {_sources(recipe.data.train)}, {length}",
            f"  eval      {_eval(recipe)}",
            f"  output    {training.output_dir}",
            *data,
        ]

    def as_dict(self) -> CheckAnswer:
        """The recipe with every default, for `--json`."""
        answer: CheckAnswer = {"ok": True, "recipe": self.recipe.model_dump(mode="json")}
        if self.data is not None:
            answer["data"] = self.data.as_dict()
            answer["memory"] = None if self.memory is None else self.memory.as_dict()
        return answer


def check_recipe(path: Path, overrides: Sequence[str]) -> CheckReport:
    """Validates a recipe.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    return CheckReport(path, read_recipe(path, overrides))


def check_data(report: CheckReport, say: Callable[[str], object]) -> CheckReport:
    """The report with what the recipe's rows are, read and encoded as for training; no weights are loaded.

    Raises:
        ModelError: the base or its tokenizer cannot be had, or the adapter does not fit the base.
        DataError: rows cannot be read, encoded or trained on.
        HubError: the Hub could not be reached.
    """
    # Reading rows brings in datasets and torch, which checking a recipe alone must not pay for.
    from peftcli.run.inputs import read_inputs
    from peftcli.run.train import lock_of

    inputs = read_inputs(report.recipe, say=say)
    lock = lock_of(report.recipe, inputs)
    memory = _memory(report.recipe, inputs, say)
    return replace(report, data=inputs.prepared.report, memory=memory, lock=lock)


def lock_recipe(report: CheckReport, say: Callable[[str], object]) -> Path:
    """Writes the lock of a recipe whose data was checked beside it, and gives the lock's path.

    Raises:
        ModelError: what stands there is no lock of ours.
        RecipeError: it cannot be written.
    """
    from peftcli.run.changes import write_locked

    assert report.lock is not None
    return write_locked(report.lock, report.path, say)


def _memory(recipe: Recipe, inputs: Inputs, say: Callable[[str], object]) -> MemoryPlan | None:
    """The memory plan; a recipe that is for another machine, or a base that is too strange, is right all the same.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    from peftcli.run.memory.plan import plan_memory

    try:
        return plan_memory(recipe, inputs)
    except AdapterError:
        raise
    except (RecipeError, ModelError) as error:
        say(f"warning: there is no memory plan: {error}")
        return None


def _sources(sources: Sequence[Source]) -> str:
    return ", ".join(source.path for source in sources)


def _eval(recipe: Recipe) -> str:
    data = recipe.data.eval
    if data is None:
        return "none"
    return _sources(data) if isinstance(data, list) else f"{data:.0%} of the training rows"
