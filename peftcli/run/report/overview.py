"""The first part of a report: what the runs are, what became of their gates, and their results."""

from __future__ import annotations

from collections.abc import Callable

from peftcli.run.figures import duration, figure, size
from peftcli.run.report.facts import RunFacts, Runs, mapping
from peftcli.run.report.markup import Markup, join, note, shown, tag
from peftcli.run.report.tables import by_run, heading, table
from peftcli.run.verdicts import Verdict


def summary(runs: Runs) -> Markup:
    """What the runs are, and how far they have come."""
    rows: dict[str, Callable[[RunFacts], str]] = {
        "folder": lambda run: str(run.folder),
        "state": _state,
        "base": lambda run: shown(run.lock.recipe.get("base_model_id") or run.lock.recipe.get("base_model")),
        "task": lambda run: shown(run.lock.recipe.get("task_type")),
        "adapter": _adapter,
        "trained rows": lambda run: shown(mapping(run.lock.data.get("train")).get("rows")),
        "steps": lambda run: shown(run.history.last_step),
        "epochs": _epochs,
        "trained tokens": lambda run: shown(run.history.last("tokens")),
        "training time": lambda run: duration(run.history.seconds) if run.history.seconds else "–",
        "tokens/s": _speed,
        "peak memory": lambda run: _size(run.history.peak("peak_memory_bytes")),
    }
    facts = {name: [tell(run) for run in runs] for name, tell in rows.items()}
    notes = (note(f"{text}.") for run in runs for text in run.history.complaints)
    return join([by_run("Summary", runs, facts), *notes])


def _state(run: RunFacts) -> str:
    if run.finished:
        return "finished"
    return "under way, or killed" if run.is_held else "broken off: it has left no adapter"


def _adapter(run: RunFacts) -> str:
    kind = shown(mapping(run.lock.recipe.get("adapter")).get("peft_type"))
    return kind if run.adapter_bytes is None else f"{kind}, {size(run.adapter_bytes)}"


def _epochs(run: RunFacts) -> str:
    done = run.history.last("epoch")
    planned = mapping(run.lock.recipe.get("training")).get("num_train_epochs")
    return shown(done) if run.finished or done is None else f"{done:.2f} of {shown(planned)}"


def _speed(run: RunFacts) -> str:
    tokens = run.history.last("tokens")
    return figure(tokens / run.history.seconds) if tokens and run.history.seconds else "–"


def _size(count: float | None) -> str:
    return "–" if count is None else size(count)


def gates(runs: Runs) -> Markup:
    """Each gate with its value, and what became of it."""
    judged = [(run, verdict) for run in runs for verdict in run.verdicts]
    if not judged:
        return Markup("")
    several = len(runs) > 1
    # The result stands where a phone shows it without scrolling.
    head = ["metric", "result", "value", "bound", *(["run"] if several else [])]
    rows = [
        (
            verdict.metric,
            [_result(verdict), shown(verdict.value), verdict.bound, *([heading(run)] if several else [])],
        )
        for run, verdict in judged
    ]
    open_ended = any(not run.finished for run, _ in judged)
    remark = "Gates are checked when a run ends; those of an unfinished one are as of now."
    return join([table("Gates", head, rows, "gates"), note(remark) if open_ended else ""])


def _result(verdict: Verdict) -> Markup:
    sign, kind = ("✓", "pass") if verdict.passed else ("✗", "fail")
    return tag("strong", f"{sign} {verdict.result}", class_=kind)


def results(runs: Runs) -> Markup:
    """The metrics of the weights that are there, and how far the other runs' are from the first one's."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    values = {"loss, last logged": [run.history.last("loss") for run in runs]}
    values |= {name: [run.metrics.get(name) for run in runs] for name in names}
    rows: dict[str, list[str]] = {
        name: [_compared(value, row[0]) if index else shown(value) for index, value in enumerate(row)]
        for name, row in values.items()
    }
    rows["evaluated at step"] = [shown(run.evaluated_at) for run in runs]
    remark = note(f"Small numbers: the difference from {runs[0].letter}.") if len(runs) > 1 else ""
    return join([by_run("Results", runs, rows, first="metric", kind="numbers"), remark])


def _compared(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return shown(value)
    difference = f"{value - reference:+.3g}".replace("-", "−") if value != reference else "±0"
    return join([shown(value), tag("small", difference)], " ")
