"""Answers that `peftcli generate` and `predict` wrote, side by side: before and after, or of several runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.errors import DataError
from peftcli.run.prompts import ADDED
from peftcli.run.report.facts import RunFacts
from peftcli.run.report.history import METRICS

# What the one and the other add to a row.
ANSWER, PREDICTION = ADDED[0], "prediction"
# The columns in which rows to generate from have the right answer; a prediction names its own.
EXPECTED = ("completion", "output", "target")
MAX_BYTES = 64_000_000


@dataclass(slots=True)
class Answers:
    """One file: for each of its rows, by the row without what was added, the answer.

    `expected` are the columns to look for the right answer in.
    """

    name: str
    answers: dict[str, str] = field(default_factory=dict)
    expected: tuple[str, ...] = EXPECTED


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt: its columns, the right answer where the row has one, and what each file has."""

    prompt: dict[str, Any]
    expected: str | None
    answers: list[str | None]

    def is_exact(self, column: int) -> bool:
        """Whether an answer is the right one, white space around it aside."""
        answer = self.answers[column]
        return answer is not None and self.expected is not None and answer.strip() == self.expected.strip()


@dataclass(frozen=True, slots=True)
class Samples:
    """All files' answers, a row a prompt."""

    columns: list[str]
    rows: list[Sample]

    @property
    def expected(self) -> int:
        """How many rows have a right answer."""
        return sum(row.expected is not None for row in self.rows)

    def exact(self, column: int) -> int:
        """How many answers of a file are right, letter by letter."""
        return sum(row.is_exact(column) for row in self.rows)


def collect_samples(runs: Sequence[RunFacts], named: Sequence[Path]) -> Samples:
    """The answers in the files that are named, or else in those that lie in the runs' folders.

    Raises:
        DataError: a file that is named cannot be read.
    """
    if named:
        files = [_read(path, path.stem) for path in named]
    else:
        files = [file for run in runs for file in _found(run, several=len(runs) > 1)]
    keys = list(dict.fromkeys(key for file in files for key in file.answers))
    return Samples([file.name for file in files], [_sample(key, files) for key in keys])


def _found(run: RunFacts, *, several: bool) -> Iterator[Answers]:
    """The files of answers in a run's folder; what else ends in .jsonl there is none of ours."""
    # Before comes before after: with the usual names that is the order of their times.
    for path in sorted(run.folder.glob("*.jsonl"), key=lambda path: (path.lstat().st_mtime_ns, path.name)):
        if path.name == METRICS or not path.is_file():
            continue
        try:
            yield _read(path, f"{run.letter} {path.stem}" if several else path.stem)
        except DataError:
            continue


def _read(path: Path, name: str) -> Answers:
    """The answers of a file.

    Raises:
        DataError: it is none that `peftcli generate` or `predict` wrote.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"is larger than {MAX_BYTES:,} bytes; name fewer rows", where=str(path))
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8; convert it", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError("holds no rows", where=str(path))
    file = Answers(name)
    for number, line in lines:
        _add(file, line, f"{path}:{number}")
    return file


def _add(file: Answers, line: str, where: str) -> None:
    try:
        row = dict(json.loads(line))
        added = {name: row.pop(name) for name in (*ADDED, PREDICTION) if name in row}
        key = json.dumps(row)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"is no JSON object: {error}", where=where) from error
    answer, prediction = added.get(ANSWER), added.get(PREDICTION)
    if isinstance(prediction, dict) and prediction:
        # What was predicted stands first; how sure that is comes after it.
        column, answer = next(iter(prediction.items()))
        file.expected = (column,)
    elif not isinstance(answer, str):
        hint = "name a file that `peftcli generate --output` or `predict --output` wrote"
        raise DataError(f"has neither {ANSWER!r} nor {PREDICTION!r}; {hint}", where=where)
    file.answers[key] = _text(answer)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sample(key: str, files: Sequence[Answers]) -> Sample:
    prompt = json.loads(key)
    columns = (name for file in files for name in file.expected)
    expected = next((_text(prompt.pop(name)) for name in columns if prompt.get(name) is not None), None)
    return Sample(prompt, expected, [file.answers.get(key) for file in files])
