"""What a recipe names, opened: the base's place, its tokenizer, the task, and the encoded rows. No weights yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftcli.data.prepare import Prepared, prepare
from peftcli.models.load import Base, resolve_base
from peftcli.recipe.schema import Recipe
from peftcli.tasks.base import Task, task_named

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A recipe's base, processor (tokenizer), task and rows."""

    base: Base
    processor: Any
    task: Task
    prepared: Prepared


def read_inputs(recipe: Recipe, *, say: Say) -> Inputs:
    """Finds the base and reads all rows; `say` gets a line when something takes long or was decided.

    Raises:
        ModelError: the base or its tokenizer cannot be had.
        DataError: rows cannot be read, encoded or trained on.
        HubError: the Hub could not be reached.
    """
    task_class = task_named(recipe.task_type)
    base = resolve_base(recipe.base_model, recipe.revision, say=say)
    config = task_class.load_config(base, trust_remote_code=recipe.trust_remote_code)
    processor = task_class.load_processor(base, trust_remote_code=recipe.trust_remote_code, say=say)
    task = task_class(recipe, processor, config)
    prepared = prepare(
        recipe.data,
        encoder=task.encoder(),
        seed=recipe.training.seed,
        order_seed=recipe.training.data_seed,
        shuffle=recipe.training.train_sampling_strategy != "sequential",
        model_max_length=task.max_input(),
    )
    training = recipe.training
    if prepared.eval is not None and training.eval_strategy == "no" and not training.eval_on_start:
        prepared.report.warnings.append(
            f"{len(prepared.eval):,} rows are held out by data.eval and never evaluated: training.eval_strategy is no"
        )
    return Inputs(base, processor, task, prepared)
