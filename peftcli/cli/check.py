"""`peftcli check`: is this recipe well-formed, and its data trainable? Will this adapter load where it is to go?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.terminal import answer, answer_json, printable, say
from peftcli.errors import RecipeError


class Program(StrEnum):
    """What loads adapters."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    PEFT = "peft"


def check(  # noqa: PLR0917  (typer's options, each called by its name)
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="The recipe's file; with --target, an adapter's folder.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value: training.learning_rate=1e-4. Repeatable."
        ),
    ] = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data",
            help="Read the data and the tokenizer too, and report lengths, trained tokens and the memory needed.",
        ),
    ] = False,
    lock: Annotated[
        bool,
        typer.Option(
            "--lock",
            help="With --data: write down what a run would be, beside the recipe (NAME.lock.yaml), for train --locked.",
        ),
    ] = False,
    target: Annotated[
        Program | None,
        typer.Option("--target", help="Check an adapter's folder for the program that is to load it."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Check a recipe without loading a model, or an adapter for the program that is to serve it.

    Every problem is reported at once, each with its line. With --data the rows are read and encoded as
    training would, what would be cut or dropped is counted, and a training step and an evaluation are
    rehearsed without memory: a run that would not fit into this machine is told what to change. With
    --target the adapter in a folder is checked, and the command that serves it is printed; status 4 says
    that it will not load there.
    """
    if target is not None:
        given = {"--data": data, "--lock": lock, "--set": bool(overrides)}
        if names := [name for name, is_given in given.items() if is_given]:
            raise RecipeError(f"--target checks an adapter; leave {' and '.join(names)} out")
        _lint(recipe, target, as_json=as_json)
        return
    if recipe.is_dir():
        raise RecipeError(
            f"{recipe} is a folder, and no recipe; to check an adapter, say for what: --target vllm, llamacpp or peft"
        )
    if lock and not data:
        raise RecipeError("--lock writes down what the data is; add --data")
    with large_imports():
        from peftcli.run.check import check_data, check_recipe, lock_recipe

    report = check_recipe(recipe, overrides or [])
    if data:
        report = check_data(report, say)
    say(*report.lines())
    if lock:
        say(f"  lock      {lock_recipe(report, say)}")
    if as_json:
        answer_json(report.as_dict())


def _lint(folder: Path, target: Program, *, as_json: bool) -> None:
    with large_imports():
        from peftcli.run.lint.lint import TARGETS, lint

    linted = lint(folder, target)
    say(*(finding.line() for finding in linted.findings))
    name = TARGETS[target].name
    say(f"{folder}: {'ok' if linted.loads else 'not'} for {name}")
    if as_json:
        answer_json(linted.as_dict())
    else:
        for command in linted.commands:
            answer(printable(command))
    if not linted.loads:
        raise typer.Exit(4)
