"""The rest of a report: samples, what differs, recipes, data, environment."""

from __future__ import annotations

from typing import Any

from peftcli.recipe.source import to_yaml
from peftcli.run.lock import flatten
from peftcli.run.report.facts import Runs, mapping
from peftcli.run.report.markup import Markup, join, note, shortened, shown, tag
from peftcli.run.report.recipes import changed_values, differences
from peftcli.run.report.samples import Sample, Samples
from peftcli.run.report.tables import by_run, heading, in_common, table

SAMPLES_SHOWN = 12
ROWS_SHOWN = 300
YAML_SHOWN = 100_000  # characters
LENGTHS = ("min", "median", "p95", "max")
# A source's counts, and what they are called here.
COUNTS = {"rows": "rows", "truncated": "cut", "dropped": "dropped", "split_rows": "split"}


def side_by_side(samples: Samples) -> Markup:
    """Each prompt with what every file of answers has for it, before and after."""
    if not samples.rows:
        hint = "`peftcli generate --input ROWS.jsonl --output DIR/answers.jsonl` leaves some"
        return note(f"There are no answers in the folder; {hint}.")
    judged = samples.expected > 0
    exact = [
        tag("li", f"{name}: {samples.exact(column):,} of {samples.expected:,} exactly as expected")
        for column, name in enumerate(samples.columns)
    ]
    head = ["prompt", *(["expected"] if judged else []), *samples.columns]
    rows = [(_prompt(row.prompt), _answers(row, judged=judged)) for row in samples.rows[:SAMPLES_SHOWN]]
    return join(
        [
            tag("ul", *exact) if judged else "",
            table("Samples", head, rows, "samples"),
            _first(SAMPLES_SHOWN, len(samples.rows)),
        ]
    )


def _first(shown_rows: int, rows: int) -> str:
    return note(f"The first {shown_rows} of {rows:,}.") if rows > shown_rows else ""


def _prompt(prompt: dict[str, Any]) -> Markup:
    if len(prompt) == 1:
        return _words(_spoken(next(iter(prompt.values()))))
    return join(_words(f"{name}: {_spoken(value)}") for name, value in prompt.items())


def _spoken(value: object) -> str:
    """A chat as its turns, anything else as it is."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return shown(value)
    turns = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in value]
    return "\n".join(f"{shown(role)}: {shown(content)}" for role, content in turns)


def _answers(row: Sample, *, judged: bool) -> list[str]:
    cells: list[str] = [_words(shown(row.expected))] if judged else []
    for column, answer in enumerate(row.answers):
        sign = tag("span", "✓", role="img", aria_label="as expected")
        text = "(empty)" if answer == "" else shown(answer and answer.strip("\n"))
        cells.append(_words(join([sign, text], " ") if row.is_exact(column) else text))
    return cells


def _words(text: str) -> Markup:
    # Its own direction: Arabic among Latin stands as it is read, and marks of order end with the cell.
    return tag("div", text, class_="words", dir="auto")


def differing(runs: Runs) -> Markup:
    """The keys of recipe, base, data and versions that are not the same in all runs."""
    if len(runs) == 1:
        return Markup("")
    found = differences([run.lock for run in runs])
    if not found:
        return note("Nothing that is noted: recipe, base, data and versions are the same.")
    rows = {name: list(map(shown, values)) for name, values in list(found.items())[:ROWS_SHOWN]}
    listed = by_run("What differs", runs, rows, first="key", kind="keys")
    return join([listed, _first(ROWS_SHOWN, len(found))])


def recipe(runs: Runs) -> Markup:
    """What the runs have in common that is not a default, and each recipe whole, folded."""
    changed = in_common("Recipe", [changed_values(run.lock.recipe) for run in runs], ROWS_SHOWN)
    rest = "has its default" if len(runs) == 1 else "has its default, or differs"
    whole = (
        tag(
            "details",
            tag("summary", f"Every value of {run.name}"),
            tag("pre", shortened(to_yaml(run.lock.recipe), YAML_SHOWN), tabindex=0),
        )
        for run in runs
        if run.lock.recipe
    )
    return join([changed, note(f"What is not here {rest}."), *whole])


def data(runs: Runs) -> Markup:
    """The data reports of the locks; one for all where they are the same."""
    first = runs[0].lock.data
    if all(run.lock.data == first for run in runs):
        return join([note("The same for all runs.") if len(runs) > 1 else "", _data(first)])
    return join(part for run in runs for part in (tag("h3", heading(run)), _data(run.lock.data)))


def _data(report: dict[str, Any]) -> Markup:
    parts = {name: mapping(report.get(name)) for name in ("train", "eval") if report.get(name)}
    if not parts:
        return note("Nothing is noted about the data.")
    head = [
        "part",
        "rows",
        "tokens",
        "trained tokens",
        *(f"{name} length" for name in LENGTHS),
        "packed into",
    ]
    counts = [(name, _counts(part)) for name, part in parts.items()]
    limit = report.get("max_length")
    return join(
        [
            table("Rows", head, counts, "numbers"),
            note(f"Rows are {shown(limit)} tokens long at most.") if limit else "",
            _sources(report),
            *(note(f"Warning: {shown(text)}") for text in _listed(report.get("warnings"))),
        ]
    )


def _counts(part: dict[str, Any]) -> list[str]:
    lengths = mapping(part.get("lengths"))
    return [
        *(shown(part.get(name)) for name in ("rows", "tokens", "trained_tokens")),
        *(shown(lengths.get(name)) for name in LENGTHS),
        shown(part.get("packed")),
    ]


def _sources(report: dict[str, Any]) -> Markup:
    rows = [
        (shown(source.get("path")), [part, shown(source.get("type")), *_source_counts(source)])
        for part in ("train", "eval")
        for source in map(mapping, _listed(report.get(f"{part}_sources")))
    ]
    head = ["source", "part", "type", *COUNTS.values(), "sha256"]
    return table("Sources", head, rows, "sources") if rows else Markup("")


def _source_counts(source: dict[str, Any]) -> list[str]:
    digests = list(mapping(source.get("sha256")).values())[:ROWS_SHOWN]
    short = join((tag("code", shown(digest)[:12]) for digest in digests), " ")
    return [*(shown(source.get(name)) for name in COUNTS), short or "–"]


def _listed(value: object) -> list[Any]:
    return value[:ROWS_SHOWN] if isinstance(value, list) else []


def environment(runs: Runs) -> Markup:
    """Base and versions, as far as they are the same."""
    told = [flatten({"base": run.lock.base, **run.lock.versions}) for run in runs]
    return in_common("Environment", told, ROWS_SHOWN) or note("Nothing is noted.")
