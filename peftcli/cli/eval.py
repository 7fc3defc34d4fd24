"""`peftcli eval`: is the adapter better than its base?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.imports import large_imports
from peftcli.cli.terminal import answer, answer_json, say


def eval_(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="Rows to evaluate on; default: those that the run held out."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows at once; default: the recipe's.")
    ] = None,
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
    """Evaluate an adapter and its bare base on the same rows, side by side.

    The recipe's gates are applied to the adapter's metrics; a gate that fails ends with status 6.
    """
    from peftcli.cli.gates import say_gates

    with large_imports():
        from peftcli.run.evaluate import evaluate
        from peftcli.run.figures import figure
        from peftcli.run.summary import append_summary
        from peftcli.run.verdicts import enforce

    comparison = evaluate(adapter, data, batch_size=batch_size, trust_remote_code=trust_remote_code, say=say)
    if not comparison.is_first:
        return
    if as_json:
        answer_json(comparison.as_dict(), indent=None)
    else:
        answer("\n".join(comparison.lines()))
    say_gates(comparison.judged)
    append_summary(
        f"peftcli eval: {adapter.resolve().name}",
        facts={
            "base": comparison.base_name,
            "folder": str(adapter),
            "rows": f"{figure(comparison.rows)} of {data or 'those held out'}",
        },
        metrics={"base": comparison.base, "adapter": comparison.adapter},
        gates=comparison.judged,
        say=say,
    )
    enforce(comparison.gates, comparison.adapter)
