"""`peftcli check`: is this recipe well-formed, and its data trainable?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import say


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value: training.learning_rate=1e-4. Repeatable."
        ),
    ] = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Read the data and the tokenizer too, and report lengths and trained tokens."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Check a recipe without loading a model.

    Every problem is reported at once, each with its line. With --data the rows are read and encoded as
    training would, and what would be cut or dropped is counted.
    """
    from peftcli.run.check import check_data, check_recipe

    report = check_recipe(recipe, overrides or [])
    if data:
        report = check_data(report, say)
    say(*report.lines())
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
