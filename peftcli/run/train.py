"""`peftcli train`: a recipe in, a run's folder out. What can fail cheaply fails first."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from peftcli.data.chat import load_template
from peftcli.errors import RecipeError
from peftcli.files import write_text
from peftcli.models.load import Loaded
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.recipe.schema import Recipe
from peftcli.run.answers import TrainAnswer
from peftcli.run.card import CardFacts, write_card
from peftcli.run.changes import check_changes, check_locked
from peftcli.run.claim import CURVES, METRICS, begin, check_folder, found, held
from peftcli.run.curves import loss_svg
from peftcli.run.inputs import Inputs, Say, read_inputs
from peftcli.run.lock import Lock, make_lock, write_lock
from peftcli.run.start import find_start, load_adapter, save_adapter, starting_point
from peftcli.run.verdicts import judge
from peftcli.train.log import finite
from peftcli.train.loop import Job, Outcome
from peftcli.train.loop import train as run_loop


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train` reports: the outcome of the loop, and what became of the gates."""

    output_dir: Path
    outcome: Outcome
    parameters: tuple[int, int]
    gates: dict[str, bool]
    is_first: bool

    @property
    def adapter_bytes(self) -> int:
        """The size of the adapter's weights."""
        return (self.output_dir / "adapter_model.safetensors").stat().st_size

    def as_dict(self) -> TrainAnswer:
        """For `--json`."""
        outcome = self.outcome
        return {
            "output_dir": str(self.output_dir),
            "steps": outcome.global_step,
            "epoch": outcome.epoch,
            "train_loss": outcome.train_loss,
            "metrics": {name: finite(value) for name, value in outcome.last_eval.items()},
            "best_checkpoint": None if outcome.best_checkpoint is None else str(outcome.best_checkpoint),
            "seconds": outcome.seconds,
            "tokens": outcome.tokens,
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "trainable_parameters": self.parameters[0],
            "all_parameters": self.parameters[1],
            "adapter_bytes": self.adapter_bytes,
            "gates": self.gates,
        }


def train(
    recipe: Recipe,
    *,
    resume: bool | Path = False,
    resume_anyway: bool = False,
    locked: Path | None = None,
    narrow: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    say: Say,
) -> Trained:
    """Trains what the recipe says and writes the run's folder.

    Args:
        recipe: the run.
        resume: go on from the last whole checkpoint (or from the start where there is none), or from this one.
        resume_anyway: go on although something harmless has changed.
        locked: the recipe's file, beside whose lock this run must be the same.
        narrow: leaves of the rows those to use.
        say: gets every line for the user; only the first process's lines are passed on.

    Raises:
        PeftcliError: of the kind that says what went wrong.
    """
    # Launchers number the processes; the group itself is formed by the loop, as training.ddp_* say.
    is_first = os.environ.get("RANK", "0") == "0"
    say = say if is_first else _nobody
    folder = Path(recipe.training.output_dir)
    checkpoint = check_folder(recipe, resume, say) if is_first else found(folder, resume)
    with held(folder) if is_first else nullcontext():
        inputs = narrow(read_inputs(recipe, say=say))
        for line in inputs.prepared.report.lines():
            say(line)
        lock = lock_of(recipe, inputs)
        check_changes(lock, folder, checkpoint, say, anyway=resume_anyway)
        if locked is not None:
            check_locked(lock, locked)
        _use_own_gpu(recipe)
        model = adapted_model(recipe, inputs, checkpoint, say)
        parameters = model.get_nb_trainable_parameters()
        share = 100 * parameters[0] / parameters[1]
        say(f"training {parameters[0]:,} of {parameters[1]:,} parameters ({share:.2f} %)")
        with writing_errors(folder), starting_point(model) as start:
            job = replace(
                _job(recipe, inputs, model, lock, start),
                resume_from=checkpoint,
                begin=lambda: begin(folder, lock, checkpoint, say),
            )
            outcome = run_loop(job)
            if is_first:
                job.save_adapter(folder)
                if start is not None:
                    say(
                        "the adapter began with a part of the base; it is saved as a plain one for the base as it was"
                    )
                _write_reports(folder, recipe, inputs, outcome, parameters)
    return Trained(folder, outcome, parameters, judge(recipe.gates, outcome.last_eval), is_first)


@contextmanager
def writing_errors(folder: Path) -> Iterator[None]:
    """Tells in one line why the run's files cannot be written; what was written whole stays.

    Raises:
        RecipeError: where the disk is full or does not let us.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(
            f"training.output_dir: {folder} cannot be written: {reason}; make room, and go on with --resume"
        ) from error


def _job(recipe: Recipe, inputs: Inputs, model: PeftModel, lock: Lock, start: Path | None) -> Job:
    def save(target: Path) -> None:
        save_adapter(model, target, start)
        inputs.task.save(target)
        write_lock(target, lock)

    return Job(
        model=model,
        task=inputs.task,
        train_rows=inputs.prepared.train,
        eval_rows=inputs.prepared.eval,
        settings=recipe.training,
        output_dir=Path(recipe.training.output_dir),
        save_adapter=save,
        load_adapter=lambda source: load_adapter(model, source, start),
        gated=tuple(recipe.gates or ()),
    )


def _nobody(_: str) -> None:
    """What the other processes say: the first one has said it."""


# The model.


def _use_own_gpu(recipe: Recipe) -> None:
    """Quantized weights are loaded onto the current GPU, and stay there: it must be this process's own."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and torch.cuda.is_available() and not recipe.training.use_cpu:
        torch.cuda.set_device(int(rank))


def adapted_model(recipe: Recipe, inputs: Inputs, checkpoint: Path | None, say: Say) -> PeftModel:
    """The base with a fresh adapter, and a fresh head where the task needs one, drawn by training.seed."""
    set_seed(recipe.training.seed)
    loaded = inputs.task.load_model(inputs.base)
    set_seed(recipe.training.seed)
    config = inputs.task.adapter_config()
    _train_heads(config, inputs.task.heads(loaded), loaded, say)
    if unused := loaded.unused:
        say(f"not used of the base: {len(unused)} weights (first: {unused[0]})")
    config.base_model_name_or_path = recipe.base_model_id or recipe.base_model
    config.revision = recipe.revision
    find_start(loaded.model, config, recipe, inputs, checkpoint=checkpoint, say=say)
    return get_peft_model(loaded.model, config)


def _train_heads(config: Any, heads: Sequence[str], loaded: Loaded, say: Say) -> None:
    """Names a task's heads in the adapter's config.

    Raises:
        RecipeError: the method trains none, and the base does not bring them.
    """
    if not heads:
        return
    listed = ", ".join(heads)
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *heads})
        new = f", with {len(loaded.new)} weights that the base does not bring" if loaded.new else ""
        say(f"trained and saved whole: {listed}{new}")
    elif loaded.new:
        raise RecipeError(
            f"adapter.peft_type: {config.peft_type} trains no head, and the base does not bring {listed}; choose "
            "another"
        )


def lock_of(recipe: Recipe, inputs: Inputs) -> Lock:
    """What the run is, for recipe.lock.yaml."""
    report = inputs.prepared.report
    template = load_template(recipe.data.chat_template) or getattr(inputs.processor, "chat_template", None)
    return make_lock(
        recipe,
        base={
            "name": inputs.base.name,
            "path": str(Path(inputs.base.path).resolve()) if inputs.base.is_local else None,
            "revision": inputs.base.revision,
            "fingerprint": inputs.base.fingerprint,
        },
        data={"format": report.train_sources[0].type, **report.as_dict()},
        chat_template=template if isinstance(template, str) else None,
    )


# What is written at the end.


def _write_reports(
    folder: Path, recipe: Recipe, inputs: Inputs, outcome: Outcome, parameters: tuple[int, int]
) -> None:
    metrics_file = folder / METRICS
    records = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    write_text(folder / CURVES, loss_svg(records))
    facts = CardFacts(
        base_id=recipe.base_model_id or recipe.base_model,
        parameters=parameters,
        data_lines=inputs.prepared.report.lines(),
        metrics={"train_loss": outcome.train_loss, **outcome.last_eval},
        steps=outcome.global_step,
        seconds=outcome.seconds,
        pipeline_tag=inputs.task.pipeline_tag,
        usage=inputs.task.usage,
        python=inputs.task.python_usage(recipe.base_model_id or recipe.base_model),
        library=inputs.task.library,
    )
    write_card(folder, recipe, facts)
