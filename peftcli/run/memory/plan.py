"""`peftcli check --data`: what a run will take of memory, by what for, and what to change where that is too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftcli.recipe.schema import Recipe
from peftcli.recipe.training import Training
from peftcli.run.answers import MemoryAnswer
from peftcli.run.figures import size
from peftcli.run.inputs import Inputs
from peftcli.run.memory.ledger import ACTIVATIONS, LOGITS
from peftcli.run.memory.machine import Room, resident, room
from peftcli.run.memory.rehearse import (
    ADAPTER,
    ALLOCATOR,
    BASE,
    GRADIENTS,
    OPTIMIZER,
    Batch,
    Rehearsal,
    longest_rows,
)
from peftcli.train.process import training_process

PROCESS = "process"
PARTS = (PROCESS, BASE, ADAPTER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, ALLOCATOR)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of one process of a run, on its device; all sizes are bytes.

    Attributes:
        device: a CPU or a GPU.
        parts: what a training step takes when it takes most, by what for.
        evaluation: what an evaluation takes in all; None where there is none.
        loading: what the process takes while the base is being loaded.
        batches: rows and tokens of the step's and the evaluation's batches.
        base: how many parameters of which type.
        optimizer: its name.
        room: what there is; None where that is not known.
        generates: whether evaluations generate texts, too, which the plan leaves out.
        suggestions: what makes it fit, where it does not.
    """

    device: str
    parts: dict[str, int]
    evaluation: int | None
    loading: int
    batches: dict[str, tuple[int, int]]
    base: tuple[int, str]
    optimizer: str
    room: Room | None
    generates: bool = False
    suggestions: tuple[str, ...] = ()

    @property
    def training(self) -> int:
        """What a step takes in all."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """What the run takes at most."""
        return max(self.training, self.evaluation or 0, self.loading)

    @property
    def fits(self) -> bool:
        """Whether there is room for it, as far as anyone knows."""
        return self.room is None or self.total <= self.room.size

    def lines(self) -> list[str]:
        """A table for a person, and a line more where it does not fit."""
        parameters, dtype = self.base
        notes = {
            PROCESS: "Python, libraries, rows",
            BASE: f"{parameters:,} parameters, {dtype}",
            OPTIMIZER: self.optimizer,
            GRADIENTS: "" if self.parts.get(GRADIENTS) else "they come when activations have gone",
            LOGITS: "with their gradient",
            ALLOCATOR: "what malloc keeps between tensors",
        }
        shown = {name for name, count in self.parts.items() if count} | {GRADIENTS}
        rows = [(name, self.parts.get(name, 0), notes.get(name, "")) for name in PARTS if name in shown]
        rows.append(("a step", self.training, _batch(*self.batches["train"])))
        if self.evaluation is not None:
            without = "; more while it generates" if self.generates else ""
            rows.append(("evaluation", self.evaluation, _batch(*self.batches["eval"]) + without))
        of = f"of {size(self.room.size)}, {self.room.owner}" if self.room else ""
        rows.append(("at most", self.total, of))
        head = f"memory    of each process, on its {'GPU' if self.device == 'cuda' else self.device}"
        table = [f"  {name:<12}{size(count):>9}   {note}".rstrip() for name, count, note in rows]
        return [head, *table, *self.warnings()]

    def warnings(self) -> list[str]:
        """One line where it does not fit."""
        if self.fits or self.room is None:
            return []
        ways = ", or ".join(self.suggestions) or "a smaller base, or fewer bits of it (quantization)"
        return [f"warning   memory: {size(self.total)} do not fit into {size(self.room.size)}; try {ways}"]

    def as_dict(self) -> MemoryAnswer:
        """For `--json`."""
        return {
            "device": self.device,
            "parts": {name: self.parts.get(name, 0) for name in PARTS},
            "training": self.training,
            "evaluation": self.evaluation,
            "loading": self.loading,
            "total": self.total,
            "available": None if self.room is None else self.room.size,
            "available_is": None if self.room is None else self.room.owner,
            "fits": self.fits,
            "suggestions": list(self.suggestions),
            "batches": {
                name: {"rows": rows, "longest": longest} for name, (rows, longest) in self.batches.items()
            },
        }


def plan_memory(recipe: Recipe, inputs: Inputs, space: Room | None = None) -> MemoryPlan:
    """What training a recipe here takes, found by rehearsing it without memory.

    Args:
        recipe: the run.
        inputs: its rows and task.
        space: what there is; default: what this machine has.

    Raises:
        ModelError: the base cannot be built without its weights.
        RecipeError: a setting that this machine cannot follow.
    """
    settings = recipe.training.model_copy(update={"report_to": None})
    with TemporaryDirectory() as folder, training_process(settings, Path(folder)) as accelerator:
        process = resident(accelerator.device)
        rehearsal = Rehearsal(recipe, inputs, accelerator)
        with rehearsal.readied():
            plan = _plan(recipe, inputs, rehearsal, process, space)
            if plan.fits or plan.room is None:
                return plan
            search = _Search(recipe.training, inputs, rehearsal, process, plan.room.size)
            return _with_suggestions(plan, search)


def _plan(
    recipe: Recipe,
    inputs: Inputs,
    rehearsal: Rehearsal,
    process: int,
    space: Room | None,
) -> MemoryPlan:
    settings, prepared, device = recipe.training, inputs.prepared, rehearsal.device
    train = _longest(inputs, prepared.train, settings.per_device_train_batch_size)
    step = rehearsal.step(settings, train)
    batches = {"train": (train.rows, train.longest)}
    evaluation = None
    if prepared.eval is not None and (settings.eval_strategy != "no" or settings.eval_on_start):
        held = _longest(inputs, prepared.eval, min(settings.per_device_eval_batch_size, len(prepared.eval)))
        evaluation = process + sum(rehearsal.evaluation(settings, held).values())
        batches["eval"] = (held.rows, held.longest)
    return MemoryPlan(
        device=device.type,
        parts={PROCESS: process, **step},
        evaluation=evaluation,
        loading=process + rehearsal.loading,
        batches=batches,
        base=(rehearsal.parameters, rehearsal.dtype),
        optimizer=settings.optim,
        room=space or room(device),
        generates=settings.predict_with_generate,
    )


def _longest(inputs: Inputs, rows: Any, count: int) -> Batch:
    return longest_rows(inputs.task, rows, count)


def _batch(rows: int, longest: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)} of up to {longest:,} tokens" if longest > 1 else f"{rows:,} rows"


# What to change.


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for settings that fit, by rehearsing them."""

    settings: Training
    inputs: Inputs
    rehearsal: Rehearsal
    process: int
    size: int

    def fits(self, rows: int, *, checkpointing: bool) -> bool:
        """Whether a step with so many rows at once does."""
        changes = {"activation_checkpointing": True} if checkpointing else {}
        settings = self.settings.model_copy(update={**changes, "gradient_accumulation_steps": 2})
        batch = _longest(self.inputs, self.inputs.prepared.train, rows)
        return self.process + sum(self.rehearsal.step(settings, batch).values()) <= self.size

    def most_rows(self, *, checkpointing: bool) -> int | None:
        """The largest share of a batch that fits, halved as often as it must be; None where not one row does."""
        return next(
            (rows for rows in self._shares() if self.fits(rows, checkpointing=checkpointing)),
            None,
        )

    def _shares(self) -> Iterator[int]:
        """Parts of the rows of a step that it can be made of, each about half the last."""
        size, steps = self.settings.per_device_train_batch_size, self.settings.gradient_accumulation_steps
        last = size
        for share in range(size - 1, 0, -1):
            if size * steps % share == 0 and (2 * share <= last or share == 1 or last == size):
                last = share
                yield share

    def bites(self, rows: int) -> str:
        """The same step in smaller bites, as a recipe says it."""
        whole = self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps
        return (
            f"training.per_device_train_batch_size: {rows} with gradient_accumulation_steps: {whole // rows} "
            "(the same step in smaller bites)"
        )


def _with_suggestions(plan: MemoryPlan, search: _Search) -> MemoryPlan:
    ways = []
    settings, limit = search.settings, search.size
    if max(plan.loading, 0 if plan.training <= limit else search.process + plan.parts[BASE]) > limit:
        # The base alone is too much.
        return plan
    if plan.training > limit:
        ways += _smaller_step(search)
    if plan.evaluation is not None and plan.evaluation > limit and settings.per_device_eval_batch_size > 1:
        room_left = limit - (search.process + plan.parts[BASE])
        share = room_left / max(1, plan.evaluation - (search.process + plan.parts[BASE]))
        rows = max(1, int(settings.per_device_eval_batch_size * share))
        ways = [f"{way} and training.per_device_eval_batch_size: {rows}" for way in ways or [""]]
        ways = [way.removeprefix(" and ") for way in ways]
    return replace(plan, suggestions=tuple(ways))


def _smaller_step(search: _Search) -> list[str]:
    """Fewer rows at once, or activations computed anew, or both."""
    settings, ways = search.settings, []
    if rows := search.most_rows(checkpointing=False):
        ways.append(search.bites(rows))
    if settings.activation_checkpointing or settings.gradient_checkpointing:
        return ways
    if search.fits(settings.per_device_train_batch_size, checkpointing=True):
        ways.append("training.activation_checkpointing: true")
    elif not ways and (rows := search.most_rows(checkpointing=True)):
        ways.append(f"training.activation_checkpointing: true and {search.bites(rows)}")
    return ways
