"""The gates of a run on the terminal: each with its value, and whether it passed."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.cli.terminal import say
from peftcli.run.figures import figure
from peftcli.run.verdicts import Verdict


def say_gates(verdicts: Sequence[Verdict]) -> None:
    """Writes a table to standard error; nothing where there are no gates."""
    rows = [("gate", "bound", "value", "result")]
    for verdict in verdicts:
        value = "–" if verdict.value is None else figure(verdict.value)
        rows.append((verdict.metric, verdict.bound, value, verdict.result))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if verdicts:
        say(*("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
