"""`peftcli recipes`: the recipes that come with peftcli."""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.terminal import answer_json, say


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this recipe instead.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="List as JSON.")] = False,
) -> None:
    """List the built-in recipes, or print one.

    Keep one with: peftcli recipes NAME > NAME.yaml
    """
    from peftcli.recipe.builtin import built_in, read_built_in, rows_elsewhere
    from peftcli.run.answers import BuiltInAnswer

    if name is not None:
        text = read_built_in(name)
        print(text, end="")
        if rows := rows_elsewhere(text):
            say("its rows, to copy into the folder recipes/ or to replace by yours:", *map(str, rows))
        return
    found = built_in()
    if as_json:
        listed: list[BuiltInAnswer] = [{"name": each.name, "description": each.description} for each in found]
        answer_json(listed)
        return
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        print(f"{each.name:{width}}  {each.description}")
