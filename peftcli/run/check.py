"""The work of `peftcli check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.recipe.read import read_recipe
from peftcli.recipe.schema import Recipe, Source
from peftcli.run.answers import CheckAnswer

if TYPE_CHECKING:
    from peftcli.data.report import DataReport


@dataclass(frozen=True, slots=True)
class CheckReport:
    """A recipe that is well-formed, and what it will train."""

    path: Path
    recipe: Recipe
    data: DataReport | None = None

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
        data = [f"  {line}" for line in self.data.lines()] if self.data is not None else []
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
        ModelError: the base or its tokenizer cannot be had.
        DataError: rows cannot be read, encoded or trained on.
        HubError: the Hub could not be reached.
    """
    # Reading rows brings in datasets and torch, which checking a recipe alone must not pay for.
    from peftcli.run.inputs import read_inputs

    return replace(report, data=read_inputs(report.recipe, say=say).prepared.report)


def _sources(sources: Sequence[Source]) -> str:
    return ", ".join(source.path for source in sources)


def _eval(recipe: Recipe) -> str:
    data = recipe.data.eval
    if data is None:
        return "none"
    return _sources(data) if isinstance(data, list) else f"{data:.0%} of the training rows"
