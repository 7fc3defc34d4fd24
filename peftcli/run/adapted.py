"""A run's folder opened for use: the task, the base and the adapter, as they were trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from pydantic import ValidationError

from peftcli.errors import ModelError
from peftcli.models.load import Base, resolve_base
from peftcli.peft.model import PeftModel
from peftcli.recipe.schema import Recipe, Source
from peftcli.run.folder import RunFolder, open_run, refuse_unread_code, warn_of_another_base
from peftcli.run.lock import LOCK_NAME, Lock, read_lock
from peftcli.tasks.base import Task, task_named

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter on its base, with its task."""

    run: RunFolder
    lock: Lock
    recipe: Recipe
    task: Task
    model: PeftModel

    def source(self, path: str) -> Source:
        """A file of rows that are written as the training rows were."""
        columns = self.run.columns or None
        return Source.model_validate({"path": path, "type": self.run.format, "columns": columns})


def open_adapted(folder: Path, say: Say, *, trust_remote_code: bool = False) -> Adapted:
    """The adapter in a folder that `peftcli train` wrote, on its base, in evaluation mode.

    Raises:
        ModelError: no such adapter, or a base that cannot be loaded.
        HubError: the base is on the Hub, which could not be reached.
    """
    run = open_run(folder)
    refuse_unread_code(run, trust_remote_code=trust_remote_code)
    lock = read_lock(folder)
    if lock is None:
        raise ModelError(
            f"{folder} has no {LOCK_NAME}, which says what its task is; name a folder that `peftcli train` wrote"
        )
    recipe = recipe_of(folder, lock, run)
    base = resolve_base(run.base_model, run.revision, say=say)
    warn_of_another_base(run, base, say)
    task = task_of(recipe, run, base, say)
    # A head that the base does not bring is drawn as it was for training: the bare base has that one.
    set_seed(recipe.training.seed)
    loaded = task.load_model(base)
    model = PeftModel.from_pretrained(loaded.model, folder, autocast_adapter_dtype=False)
    device = torch.accelerator.current_accelerator(check_available=True)
    if run.quantization is None and device is not None:
        model = model.to(device)
    return Adapted(run, lock, recipe, task, model.eval())


def recipe_of(folder: Path, lock: Lock, run: RunFolder) -> Recipe:
    """The recipe in a lock, for the base that the folder names.

    Raises:
        ModelError: the lock's recipe is none for this release.
    """
    try:
        return Recipe.model_validate({**lock.recipe, "base_model": run.base_model, "revision": run.revision})
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"recipe.{key}: {first['msg']}; it was written by another release of peftcli",
            where=str(folder / LOCK_NAME),
        ) from error


def task_of(recipe: Recipe, run: RunFolder, base: Base, say: Say) -> Task:
    """The task with what lies beside the adapter: labels, tokenizer or processor.

    Raises:
        ModelError: a file is missing or broken.
        HubError: the base is on the Hub, which could not be reached.
    """
    task_class = task_named(recipe.task_type)
    trusts = recipe.trust_remote_code
    config = task_class.load_config(base, trust_remote_code=trusts)
    source = Base(str(run.folder), str(run.folder), None, "") if run.has_processor else base
    task = task_class(recipe, task_class.load_processor(source, trust_remote_code=trusts, say=say), config)
    task.restore(run.folder)
    return task
