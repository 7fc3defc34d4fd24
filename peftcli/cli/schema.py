"""`peftcli schema`: the JSON Schema of recipes, and of what commands print with --json."""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.errors import RecipeError, did_you_mean


def schema(
    command: Annotated[
        str | None,
        typer.Argument(
            metavar="COMMAND", help="Of what this command prints with --json instead.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the recipe's JSON Schema, for editors and other tools; or that of a command's --json."""
    if command is None:
        from peftcli.recipe.json_schema import schema_text

        print(schema_text(), end="")
        return
    from peftcli.run.answers import ANSWERS, answer_schema_text

    if command not in ANSWERS:
        raise RecipeError(f"{command!r} prints no JSON; {did_you_mean(command, ANSWERS)}")
    print(answer_schema_text(command), end="")
