"""`peftcli init`: a starter recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import say


def init(
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="The task_type to start from.")
    ] = "CAUSAL_LM",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base model: a Hub id, a folder, or a .gguf file."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the recipe here, and rows to train on beside it."
        ),
    ] = None,
) -> None:
    """Write a commented starter recipe that trains as it stands.

    With --output a small file of example rows is written beside the recipe. Without it the recipe goes to
    standard output, and trains on rows that come with peftcli. Nothing that exists is overwritten.
    """
    from peftcli.run.starter import starter, write_starter

    if output is None:
        print(starter(task, base), end="")
        return
    recipe, rows = write_starter(output, task, base)
    written = ", ".join(map(str, rows))
    say(f"wrote {recipe} and its rows {written}", f"train it with: peftcli train {recipe}")
