"""The summary of a CI job: Markdown, appended to the file that GITHUB_STEP_SUMMARY names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from peftcli.run.figures import figure
from peftcli.run.stream import visible
from peftcli.run.verdicts import Verdict

VARIABLE = "GITHUB_STEP_SUMMARY"

Say = Callable[[str], object]


def append_summary(
    title: str,
    *,
    facts: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    gates: Sequence[Verdict],
    say: Say,
) -> None:
    """Appends to the job's summary, where there is one; that it cannot be written costs a warning, not the job.

    Args:
        title: the command and what it was about.
        facts: name to text.
        metrics: for each column (`value`, or `adapter` and `base`) its metrics.
        gates: what became of them.
        say: gets the warning.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8", newline="\n") as file:
            file.write(summary(title, facts=facts, metrics=metrics, gates=gates))
    except OSError as error:
        say(f"warning: {VARIABLE}: {path} cannot be written: {error.strerror}; the summary is left out")


def summary(
    title: str,
    *,
    facts: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    gates: Sequence[Verdict],
) -> str:
    """The Markdown; every value in it is text, whatever it holds."""
    parts = [f"## {_inert(title)}", _table(["", ""], ([name, _code(text)] for name, text in facts.items()))]
    names = list(dict.fromkeys(name for column in metrics.values() for name in column))
    if names:
        rows = ([_code(name), *(_number(column.get(name)) for column in metrics.values())] for name in names)
        parts.append(_table(["metric", *map(_inert, metrics)], rows))
    if gates:
        judged = (
            [_code(gate.metric), _inert(gate.bound), _number(gate.value), _result(gate)] for gate in gates
        )
        parts.append(_table(["gate", "bound", "value", "result"], judged))
    # An empty line first: what is in the file already may end without one.
    return "\n" + "\n".join(f"{part}\n" for part in parts)


def _result(gate: Verdict) -> str:
    return gate.result if gate.passed else f"**{gate.result}**"


def _number(value: float | None) -> str:
    return "–" if value is None else figure(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"<code>{_inert(text)}</code>"


def _inert(text: str) -> str:
    """The text on one line, with nothing in it that Markdown, HTML or GitHub gives a meaning.

    Character references never mean structure, in or out of tables (CommonMark 0.31, section 2.5); backslashes
    before a table's bars do not hold inside code.
    """
    line = " ".join(visible(text).encode("utf-8", "backslashreplace").decode().split())
    return "".join(char if char.isalnum() or char in " -/" else f"&#{ord(char)};" for char in line)
