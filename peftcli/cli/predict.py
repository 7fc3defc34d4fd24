"""`peftcli predict`: what does the adapter say of these rows?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.output import check_output
from peftcli.cli.terminal import answer, answer_json, inert_json, say


def predict(
    *,
    adapter: Annotated[
        Path, typer.Option("--adapter", metavar="DIR", help="The adapter's folder.", show_default=False)
    ],
    input: Annotated[  # noqa: A002  (the flag's name is fixed)
        Path,
        typer.Option(
            "--input", metavar="FILE", help="Rows in the format of the training rows.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.jsonl", help="Where the rows go; default: standard output."),
    ] = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Ask the bare base, for comparison.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows at once.")] = 8,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the Python code that the base brings, as the training did."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Predict with an adapter whose task is not to generate: labels, spans, masks, embeddings, transcripts.

    A row comes out as it went in, with `prediction` beside its columns. Masks are written as PNG into a folder beside
    --output, with its name without .jsonl.
    """
    if output is not None:
        check_output(output, input)
    with large_imports():
        from peftcli.run.answers import RowsAnswer
        from peftcli.run.predict import lines, write_predictions
        from peftcli.run.predict import predict as run_predict

    files = None if output is None else output.with_suffix("")
    predictions = run_predict(
        adapter,
        input,
        files=files,
        with_adapter=not no_adapter,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        say=say,
    )
    if output is not None:
        write_predictions(output, predictions)
        say(f"{output}: {len(predictions):,} rows")
        if as_json:
            summary: RowsAnswer = {"output": str(output), "rows": len(predictions)}
            answer_json(summary, indent=None)
    elif as_json:
        answer_json([each.as_dict() for each in predictions])
    else:
        answer(inert_json(lines(predictions)), end="")
