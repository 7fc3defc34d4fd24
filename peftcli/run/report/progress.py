"""The curves of a report, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Iterator

from peftcli.run.figures import figure
from peftcli.run.report.charts import Line, chart
from peftcli.run.report.facts import RunFacts, Runs
from peftcli.run.report.markup import Markup, join, note, shown, tag
from peftcli.run.report.tables import heading, look, table

EVALUATIONS_SHOWN = 200


Chart = tuple[str, list[Line]]  # its title and what is in it


def curves(runs: Runs) -> Markup:
    """A chart a metric, with all runs in it, and the evaluations to read."""
    steps = (0.0, max((run.history.last_step or 0.0) for run in runs))
    charts = [chart(title, lines, steps, number) for number, (title, lines) in enumerate(_charts(runs), 1)]
    if not charts:
        return note("Nothing has been logged yet.")
    legend = tag("ul", *(tag("li", heading(run)) for run in runs), class_="legend") if len(runs) > 1 else ""
    return join([legend, tag("div", *charts, class_="charts"), _evaluations(runs)])


def _charts(runs: Runs) -> Iterator[Chart]:
    evaluated = {name for run in runs for name in run.history.evaluated}
    titles = {
        "loss": "training loss",
        **{name: name for name in sorted(evaluated, key=lambda name: (name != "eval_loss", name))},
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm",
    }
    if len(runs) == 1 and "loss" in runs[0].history.curves and "eval_loss" in evaluated:
        yield _losses(runs[0])
        del titles["loss"], titles["eval_loss"]
    for name, title in titles.items():
        if lines := [_line(run, name) for run in runs if name in run.history.curves]:
            yield title, lines


def _losses(run: RunFacts) -> Chart:
    """One run's two losses, in one chart: their distance tells of overfitting."""
    found = run.history.curves
    return "loss", [
        Line("training", "training", 0, found["loss"]),
        Line("evaluation", "evaluation", 1, found["eval_loss"]),
    ]


def _line(run: RunFacts, name: str) -> Line:
    return Line(f"{run.letter}, {run.name}", run.letter, look(run), run.history.curves[name])


def _evaluations(runs: Runs) -> Markup:
    names = list(dict.fromkeys(name for run in runs for name in run.history.evaluated))
    steps = [(run, step) for run in runs for step in run.history.evaluations]
    if not steps:
        return Markup("")
    several = len(runs) > 1
    head = ["step", *(["run"] if several else []), *names]
    rows = [
        (figure(step), [*([heading(run)] if several else []), *(_value(run, name, step) for name in names)])
        for run, step in steps[-EVALUATIONS_SHOWN:]
    ]
    beyond = len(steps) > EVALUATIONS_SHOWN
    return tag(
        "details",
        tag("summary", "Evaluations as a table"),
        table("Evaluations", head, rows, "numbers"),
        note(f"The last {EVALUATIONS_SHOWN} of {len(steps):,}.") if beyond else "",
    )


def _value(run: RunFacts, name: str, step: float) -> str:
    curve = run.history.curves.get(name)
    return shown(curve.at(step) if curve else None)
