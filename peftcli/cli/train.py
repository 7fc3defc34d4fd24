"""`peftcli train`: from a recipe to a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import say


def train(
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Train an adapter as a recipe says.

    What it leaves in training.output_dir: the adapter (adapter_config.json, adapter_model.safetensors), the
    model card, the locked recipe, metrics.jsonl, loss.svg and the checkpoints. Ctrl-C saves a checkpoint to
    resume from.
    """
    from peftcli.recipe.read import read_recipe

    run = read_recipe(recipe, overrides or [])

    from peftcli.run.train import enforce
    from peftcli.run.train import train as train_recipe

    trained = train_recipe(run, resume=Path(resume) if resume else resume is not None, say=say)
    if not trained.is_first:
        return
    outcome = trained.outcome
    metrics = "".join(f", {name} {value:.4g}" for name, value in outcome.last_eval.items())
    say(
        f"done: {outcome.global_step:,} steps in {outcome.seconds:.0f} s, train_loss {outcome.train_loss:.4g}{metrics}",
        f"the adapter is in {trained.output_dir} ({trained.adapter_bytes / 1e6:.1f} MB)",
    )
    if as_json:
        print(json.dumps(trained.as_dict(), ensure_ascii=False))
    else:
        print(trained.output_dir)
    enforce(trained)
