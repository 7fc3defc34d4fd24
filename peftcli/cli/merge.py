"""`peftcli merge`: an adapter and its base as one plain model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.terminal import answer, answer_json, say


class Dtype(StrEnum):
    """The types that weights are written in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def merge(
    *,
    adapter: Annotated[
        Path, typer.Option("--adapter", metavar="DIR", help="The adapter's folder.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where the model goes.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Another base to merge into than the adapter names."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="The type to write the weights in; auto: the base's in training.")
    ] = Dtype.AUTO,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Load what was written, and compare its outputs with the adapter's."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is in --output.")
    ] = False,
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
    """Merge an adapter into its base: a whole model that plain Transformers loads.

    The sum is made in float64 where the weights are of half precision, and rounded once. Nothing is written where it
    is not finite or, with --verify, where the model's outputs are not those of the adapter on its base (status 4).
    """
    with large_imports():
        from peftcli.run.merge import merge as run

    merged = run(
        adapter,
        output,
        base_model=base,
        dtype=dtype,
        verify=verify,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        say=say,
    )
    if merged.drift is not None:
        say(f"verified: {merged.drift.line()}")
    say(f"wrote {merged.parameters:,} numbers in {merged.dtype}, {merged.size / 1e6:,.1f} MB")
    if as_json:
        answer_json(merged.as_dict())
    else:
        answer(str(merged.output))
