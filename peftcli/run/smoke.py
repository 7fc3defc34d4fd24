"""`peftcli train --smoke`: proves a recipe on this machine in under a minute, before it costs hours on another.

The base's architecture, with two layers and random weights, is trained on the recipe's longest rows for three steps,
evaluated, saved, loaded again and used. What a smoke run cannot tell is whether the real base fits into memory, and
whether it learns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from peftcli.data.store import Picked
from peftcli.errors import ModelError
from peftcli.models.load import load_generation, resolve_base
from peftcli.models.quiet import bars_on_terminals_only
from peftcli.models.shrink import shrink
from peftcli.recipe.schema import Recipe
from peftcli.run.adapted import Adapted, open_adapted
from peftcli.run.answers import SmokeAnswer
from peftcli.run.inputs import Inputs, Say
from peftcli.run.train import train
from peftcli.tasks.base import task_named
from peftcli.train.feed import on_device

STEPS = 3


@dataclass(frozen=True, slots=True)
class Smoked:
    """What a smoke run found."""

    seconds: float
    losses: tuple[float, float | None]
    rows: int
    longest: int

    def as_dict(self) -> SmokeAnswer:
        """For `--json`."""
        return {
            "ok": True,
            "seconds": self.seconds,
            "train_loss": self.losses[0],
            "eval_loss": self.losses[1],
            "rows": self.rows,
            "longest_row": self.longest,
        }


def smoke(recipe: Recipe, say: Say) -> Smoked:
    """Trains the shrunk base in a temporary folder; nothing of the recipe's output_dir is touched.

    Raises:
        PeftcliError: what would have stopped the real run, or the adapter that was saved is not the one that was
            trained.
    """
    begun = time.monotonic()
    with TemporaryDirectory() as folder:
        small = _small_recipe(recipe, _shrunk_base(recipe, Path(folder, "base"), say), Path(folder, "run"))
        chosen: list[Inputs] = []

        def narrow(inputs: Inputs) -> Inputs:
            chosen.append(_longest(inputs, small))
            return chosen[-1]

        trained = train(small, narrow=narrow, say=say)
        loss = trained.outcome.last_eval.get("eval_loss")
        adapted = open_adapted(trained.output_dir, say, trust_remote_code=recipe.trust_remote_code)
        _check_again(adapted, chosen[0], small, loss)
    say("smoke run: the adapter was saved, loaded again, and gives the same loss")
    lengths: list[int] = getattr(chosen[0].prepared.train, "lengths", [])
    return Smoked(
        time.monotonic() - begun, (trained.outcome.train_loss, loss), len(lengths), max(lengths, default=0)
    )


def _shrunk_base(recipe: Recipe, folder: Path, say: Say) -> Path:
    """A folder with the base's architecture in small, at random, and its processor."""
    base = resolve_base(recipe.base_model, recipe.revision, say=say)
    task_class = task_named(recipe.task_type)
    trusts = recipe.trust_remote_code
    config = task_class.load_config(base, trust_remote_code=trusts)
    processor = task_class.load_processor(base, trust_remote_code=trusts, say=say)
    shrink(config)
    set_seed(recipe.training.seed)
    try:
        model = task_class.from_config(config, trust_remote_code=trusts)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"--smoke: {base.name!r} cannot be built in small: {error}") from error
    if model.can_generate() and (generation := load_generation(base)) is not None:
        model.generation_config = generation
    with bars_on_terminals_only():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"smoke run: {type(model).__name__} in small, with random weights, {count:,} parameters")
    return folder


def _small_recipe(recipe: Recipe, base: Path, output: Path) -> Recipe:
    training = recipe.training.model_copy(
        update={
            "output_dir": str(output),
            "max_steps": STEPS,
            "logging_steps": 1,
            "eval_strategy": "no" if recipe.data.streaming and recipe.data.eval is None else "steps",
            "eval_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": STEPS,
            "load_best_model_at_end": False,
            "early_stopping_patience": None,
            "bf16": False,
            "report_to": None,
            "use_cpu": True,
            "fp16": False,
            "torch_compile": False,
            "optim": recipe.training.optim if recipe.quantization is None else "adamw_torch",
        }
    )
    changes = {
        "base_model": str(base),
        "revision": None,
        "quantization": None,
        "gates": None,
        "training": training,
    }
    return recipe.model_copy(update={**changes, "dtype": "float32"})


def _longest(inputs: Inputs, recipe: Recipe) -> Inputs:
    """The inputs with the longest rows only: as many as the steps need, and as many to evaluate on."""
    prepared, settings = inputs.prepared, recipe.training
    wanted = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * STEPS
    rows = prepared.train
    train_rows = rows.only(_order(rows.lengths)[:wanted]) if isinstance(rows, Picked) else rows
    held = prepared.eval
    if held is None:
        held = train_rows if isinstance(train_rows, Picked) else None
    elif isinstance(held, Picked):
        held = held.only(_order(held.lengths)[: settings.per_device_eval_batch_size])
    return replace(inputs, prepared=replace(prepared, train=train_rows, eval=held))


def _order(lengths: list[int]) -> Any:
    return np.argsort(-np.asarray(lengths), kind="stable")


def _check_again(adapted: Adapted, inputs: Inputs, recipe: Recipe, loss: float | None) -> None:
    """Evaluates the adapter that was loaded again, and predicts with it.

    Raises:
        ModelError: it is not the one that was saved.
    """
    rows = inputs.prepared.eval
    if rows is None or loss is None:
        return
    adapted.model.to("cpu")
    size, total, count = recipe.training.per_device_eval_batch_size, 0.0, 0.0
    for start in range(0, len(rows), size):
        chosen = [rows[at] for at in range(start, min(start + size, len(rows)))]
        # By the task that encoded the rows: labels have its numbers until then.
        batch = on_device(inputs.task.collate(chosen), torch.device("cpu"))
        with torch.inference_mode():
            one, weight = adapted.task.metrics(adapted.model, batch).sums["loss"]
            if type(adapted.task).predicts():
                adapted.task.predict(adapted.model, batch)
        total, count = total + float(one), count + float(weight)
    again = total / max(count, 1.0)
    if not abs(again - loss) <= 1e-3 * max(1.0, abs(loss)):
        raise ModelError(
            f"--smoke: the adapter that was loaded again has another loss, {again:.6g} and not {loss:.6g}"
        )
