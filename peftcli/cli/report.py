"""`peftcli report`: one page about a run, or about several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.terminal import answer, answer_json, say


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Runs' folders.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html", help="The page; default: report.html in the first DIR."
        ),
    ] = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option(
            "--samples",
            metavar="FILE.jsonl",
            help="Answers that `generate --output` wrote, to show side by side. Repeatable; default: those in DIR.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Write one HTML page about runs: curves, results, samples, recipes and what differs.

    The page needs no network and holds no script. A run that is under way or broken off is shown as far as it
    has come.
    """
    from peftcli.run.report.write import write_report

    written = write_report(folders, output, samples or [])
    for run in written.runs:
        say(*(f"warning: {run.folder}: {text}" for text in run.history.complaints))
    if as_json:
        answer_json(written.as_dict())
    else:
        answer(str(written.path))
