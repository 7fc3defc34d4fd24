"""Tables of a report: each scrolls inside itself, so that the page is never wider than its window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftcli.run.report.charts import swatch
from peftcli.run.report.facts import RunFacts
from peftcli.run.report.markup import Markup, join, shown, tag

Row = tuple[str, Sequence[str]]  # its header and its cells


def table(label: str, head: Sequence[str], rows: Iterable[Row], kind: str = "") -> Markup:
    """A table whose first column names the rows.

    Args:
        label: what a screen reader calls it.
        head: the columns' names, that of the first one included; none of them where all are empty.
        rows: header and cells.
        kind: `numbers` for cells that stand right.
    """
    body = [
        tag("tr", tag("th", header, scope="row"), *(tag("td", cell) for cell in cells))
        for header, cells in rows
    ]
    top = (
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))) if any(head) else Markup("")
    )
    # A part that scrolls must be reachable by keyboard, and what is reachable needs a name.
    return tag(
        "div",
        tag("table", top, tag("tbody", *body), class_=kind or None),
        class_="scroll",
        role="region",
        aria_label=label,
        tabindex=0,
    )


def by_run(
    label: str,
    runs: Sequence[RunFacts],
    rows: Mapping[str, Sequence[str]],
    *,
    first: str = "",
    kind: str = "",
) -> Markup:
    """A column a run; where there is one run only, its name is not repeated.

    Args:
        label: what a screen reader calls it.
        runs: the columns.
        rows: name to a cell for each run.
        first: what the rows' names are.
        kind: as for `table`.
    """
    head = [first, *(heading(run) for run in runs)] if len(runs) > 1 else ["", ""]
    return table(label, head, rows.items(), kind)


def in_common(label: str, values: Sequence[Mapping[str, Any]], most: int) -> Markup:
    """The keys that have the same value everywhere, or nothing where there are none; at most `most`."""
    names = dict.fromkeys(name for each in values for name in each)
    same = [name for name in names if all(each.get(name) == values[0].get(name) for each in values)]
    rows = [(name, [shown(values[0].get(name))]) for name in same[:most]]
    return table(label, ["", ""], rows, "keys") if rows else Markup("")


def heading(run: RunFacts) -> Markup:
    """A run's letter, line and name."""
    return join([tag("b", run.letter), swatch(look(run)), run.name], " ")


def look(run: RunFacts) -> int:
    """The colour and dashes of a run."""
    return ord(run.letter) - ord("A")
