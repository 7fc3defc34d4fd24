"""`peftcli inspect`: what is this adapter, and where does it differ from another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import answer, answer_json, printable


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter's folder.", show_default=False)],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another to compare it with.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Show what an adapter is: method, targets, ranks, size, and how much it changes each layer.

    The base is not needed, and not loaded. With OTHER, the difference: fields, layers, distances. An adapter
    with values that are not finite ends with status 4.
    """
    from peftcli.run.inspect import inspect as look_at

    found = look_at(folder)
    if other is None:
        print_report(found.as_dict(), found.lines(), as_json=as_json)
        found.enforce()
        return
    from peftcli.run.difference import compare

    second = look_at(other)
    difference = compare(found, second)
    print_report(difference.as_dict(), difference.lines(), as_json=as_json)
    found.enforce()
    second.enforce()


def print_report(content: object, lines: list[str], *, as_json: bool) -> None:
    """On standard output: names in an adapter come from strangers, and must not steer the terminal."""
    if as_json:
        answer_json(content)
    else:
        answer("\n".join(map(printable, lines)))
