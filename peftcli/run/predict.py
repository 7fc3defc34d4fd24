"""`peftcli predict`: what an adapter says of rows; a row in, the same row with its `prediction` out.

Rows are encoded as those of the training were, without what is to be predicted; where they have it all the same,
it comes out again beside the prediction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from peftcli import registry
from peftcli.data.example import Row, row_length
from peftcli.data.reading import Encoding, SourceReading
from peftcli.data.report import SourceReport
from peftcli.data.sources import RawRow
from peftcli.errors import DataError, MemoryLimitError, RecipeError
from peftcli.files import replacing_folder
from peftcli.run.adapted import Adapted, open_adapted
from peftcli.run.folder import open_run
from peftcli.run.prompts import write_rows
from peftcli.tasks.base import Task, task_named
from peftcli.train.feed import on_device

Say = Callable[[str], object]
KEY = "prediction"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row as its file has it, and what is said of it."""

    row: dict[str, Any]
    prediction: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The row with its prediction."""
        return {**self.row, KEY: self.prediction}


def predict(
    folder: Path,
    path: Path,
    *,
    files: Path | None,
    with_adapter: bool,
    batch_size: int,
    trust_remote_code: bool = False,
    say: Say,
) -> list[Prediction]:
    """Predicts on the rows of a file, in its order.

    Args:
        folder: the adapter's.
        path: the rows.
        files: where files go that a prediction names; None where there is no place for them.
        with_adapter: False for the bare base.
        batch_size: rows at once.
        trust_remote_code: run code that the base brings, where the run did.
        say: gets a line for what the user should know.

    Raises:
        PeftcliError: of the kind that says what went wrong.
    """
    _check_files(folder, files)
    adapted = open_adapted(folder, say, trust_remote_code=trust_remote_code)
    if not type(adapted.task).predicts():
        raise RecipeError(
            f"this adapter's task is {adapted.task.task_type}, which generates; use `peftcli generate`"
        )
    examples, report = _read(adapted, path, say)
    if losses := report.losses():
        say(losses)
    with nullcontext() if with_adapter else adapted.model.disable_adapter():
        records = _records(adapted, [row for _, rows in examples for row in rows], batch_size)
    return _answered(adapted.task, examples, records, files)


def _check_files(folder: Path, files: Path | None) -> None:
    """Refuses to lose what is in the folder for an answer's files, or to have none for them.

    Raises:
        RecipeError: always then.
    """
    name = open_run(folder).task_type
    keys = task_named(name).answer_files if name in registry.TASKS else ()
    if not keys:
        return
    what = " and ".join(keys)
    if files is None:
        raise RecipeError(
            f"--output: each row has a {what}, a file; name a FILE.jsonl, and a folder beside it gets them"
        )
    if files.is_file() or (files.is_dir() and any(files.iterdir())):
        raise RecipeError(
            f"--output: {files} is where each row's {what} goes, and there is something; name another FILE.jsonl"
        )


def _answered(
    task: Task, examples: Sequence[tuple[RawRow, list[Row]]], records: Sequence[Any], files: Path | None
) -> list[Prediction]:
    """Each row with its answer; files that answers name are all in their folder at the end, or none is.

    Raises:
        DataError: they cannot be written.
    """
    predictions, at = [], 0
    keys = type(task).answer_files
    try:
        with nullcontext() if files is None or not keys else replacing_folder(files) as folder:
            for raw, rows in examples:
                answer = task.answer(rows, records[at : at + len(rows)], folder)
                for key in keys:
                    answer[key] = f"{files.name}/{answer[key]}" if files is not None else answer[key]
                predictions.append(Prediction(raw.columns, answer))
                at += len(rows)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(files)) from error
    return predictions


def _read(adapted: Adapted, path: Path, say: Say) -> tuple[list[tuple[RawRow, list[Row]]], SourceReport]:
    task, data = adapted.task, adapted.recipe.data
    # Every row gets its answer: what training would drop is cut here.
    overflow = "error" if data.overflow == "error" else "truncate"
    encoding = Encoding(
        replace(task.encoder(), trained=None),
        task.limit,
        overflow,
        predicting=True,
    )
    reading = SourceReading(adapted.source(str(path)), encoding)
    examples = list(reading.pairs())
    for raw, _ in examples:
        if KEY in raw.columns:
            raise DataError(
                f"has the column {KEY!r}, which the result would overwrite; rename it", where=raw.where
            )
    return _without_bytes(examples, say), reading.report


def _without_bytes(examples: Sequence[tuple[RawRow, list[Row]]], say: Say) -> list[tuple[RawRow, list[Row]]]:
    """The rows as JSON can hold them: files that stand in them (Parquet's pictures and sounds) come out by name."""
    held = 0
    plain = []
    for raw, rows in examples:
        columns = {
            name: {**value, "bytes": None}
            if isinstance(value, dict) and isinstance(value.get("bytes"), bytes)
            else value
            for name, value in raw.columns.items()
        }
        held += columns != raw.columns
        plain.append((replace(raw, columns=columns), rows))
    if held:
        say(f"{held:,} rows hold files, which come out by their names alone: JSON has no bytes")
    return plain


def _records(adapted: Adapted, rows: Sequence[Row], batch_size: int) -> list[Any]:
    """One record a row, in order; rows of like length share a batch."""
    records: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: -row_length(rows[at]))
    device = adapted.model.device
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = on_device(adapted.task.collate([rows[at] for at in chosen]), device)
                for at, record in zip(chosen, adapted.task.predict(adapted.model, batch), strict=True):
                    records[at] = record
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError("predicting ran out of memory; lower --batch-size") from error
    return records


def lines(predictions: Sequence[Prediction]) -> str:
    """JSON Lines; no script is escaped.

    Raises:
        DataError: a row holds what JSON cannot.
    """
    try:
        return "".join(json.dumps(each.as_dict(), ensure_ascii=False) + "\n" for each in predictions)
    except TypeError as error:
        raise DataError(f"a row cannot be written as JSON: {error}; write the rows as .jsonl") from error


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes JSON Lines: the whole file or nothing.

    Raises:
        DataError: the file cannot be written.
    """
    write_rows(path, lines(predictions))
