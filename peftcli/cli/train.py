"""`peftcli train`: from a recipe to a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.terminal import answer, answer_json, say

if TYPE_CHECKING:
    from peftcli.recipe.schema import Recipe
    from peftcli.run.train import Trained


def train(  # noqa: PLR0917  (typer's options, each called by its name)
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value: training.learning_rate=1e-4. Repeatable."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[CHECKPOINT]",
            help="Go on from CHECKPOINT, or from the last whole one, or from the start where there is none.",
        ),
    ] = None,
    resume_anyway: Annotated[
        bool,
        typer.Option("--resume-anyway", help="As --resume, although something harmless has changed since."),
    ] = False,
    locked: Annotated[
        bool,
        typer.Option(
            "--locked",
            help="Refuse to train anything else than the lock beside the recipe (NAME.lock.yaml) says.",
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Prove the recipe in a minute: its base in small and random, its longest rows, 3 steps.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Train an adapter as a recipe says.

    What it leaves in training.output_dir: the adapter (adapter_config.json, adapter_model.safetensors), the
    model card, the locked recipe, metrics.jsonl, loss.svg and the checkpoints. Ctrl-C saves a checkpoint to
    resume from.
    """
    from peftcli.cli.allocator import keep_freed_memory
    from peftcli.recipe.read import read_recipe

    run = read_recipe(recipe, overrides or [])
    keep_freed_memory()

    if smoke:
        _smoke(run, as_json=as_json)
        return
    with large_imports():
        from peftcli.run.train import train as train_recipe
        from peftcli.run.verdicts import enforce

    trained = train_recipe(
        run,
        resume=Path(resume) if resume else resume is not None or resume_anyway,
        resume_anyway=resume_anyway,
        locked=recipe if locked else None,
        say=say,
    )
    if not trained.is_first:
        return
    _tell(run, trained)
    if as_json:
        answer_json(trained.as_dict(), indent=None)
    else:
        answer(str(trained.output_dir))
    enforce(trained.gates, trained.outcome.last_eval, where=f"; the adapter is in {trained.output_dir}")


def _smoke(recipe: Recipe, *, as_json: bool) -> None:
    with large_imports():
        from peftcli.run.smoke import smoke as prove

    found = prove(recipe, say)
    say(f"smoke run: ok, in {found.seconds:.0f} s")
    if as_json:
        answer_json(found.as_dict(), indent=None)


def _tell(recipe: Recipe, trained: Trained) -> None:
    """The outcome, on the terminal and in the job's summary; a gate that failed is told like any other."""
    from peftcli.cli.gates import say_gates
    from peftcli.run.figures import duration, figure, size
    from peftcli.run.summary import append_summary
    from peftcli.run.verdicts import verdicts

    outcome = trained.outcome
    metrics = "".join(f", {name} {value:.4g}" for name, value in outcome.last_eval.items())
    say(
        f"done: {outcome.global_step:,} steps in {outcome.seconds:.0f} s, train_loss {outcome.train_loss:.4g}{metrics}",
        f"the adapter is in {trained.output_dir} ({trained.adapter_bytes / 1e6:.1f} MB)",
    )
    judged = verdicts(recipe.gates, outcome.last_eval)
    say_gates(judged)
    append_summary(
        f"peftcli train: {trained.output_dir.name}",
        facts={
            "base": recipe.base_model_id or recipe.base_model,
            "adapter": f"{recipe.adapter['peft_type']}, {size(trained.adapter_bytes)}",
            "folder": str(trained.output_dir),
            "steps": figure(outcome.global_step),
            "time": duration(outcome.seconds),
        },
        metrics={"value": {"train_loss": outcome.train_loss, **outcome.last_eval}},
        gates=judged,
        say=say,
    )
