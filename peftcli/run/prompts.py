"""Prompts from a JSON Lines file, and completions to one: a row in, the same row with its completion out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.data.columns import load_format, string
from peftcli.data.example import Chat, Instruction
from peftcli.data.prompt import Prompt
from peftcli.errors import DataError, did_you_mean
from peftcli.files import write_text

if TYPE_CHECKING:
    from peftcli.run.generate import Generator

# JSON's escapes can write one half of a surrogate pair; no tokenizer takes it, and UTF-8 cannot hold it.
_HALF = re.compile("[\ud800-\udfff]")

# What `complete` adds to a row; a row that brings one of these would lose it. The first is the name that
# Transformers' text-generation pipeline has for it.
ADDED = ("generated_text", "tokens", "finish_reason")
# The columns that a prompt may stand in, as the formats of training rows name them: those of adapters that were
# trained on pairs, and those of all others, whose rows may say in `source` where they are from.
PROMPTS = ("prompt", "messages", "conversations", "instruction")
SOURCES = ("source", "prompt")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the file: where it stands, the whole row, and what of it is the prompt."""

    where: str
    row: dict[str, Any]
    prompt: Prompt


def read_prompts(
    path: Path,
    columns: Mapping[str, str] | None = None,
    written: str | None = None,
) -> list[PromptRow]:
    """The rows of a JSON Lines file; each has its prompt in one column, named as training rows name it.

    Args:
        path: the file.
        columns: the renames that the training rows had (format's column: file's column); they hold here, too.
        written: the training rows' format.

    Raises:
        DataError: the file or a row cannot be read; the row is named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8; convert it", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    # Not splitlines: it would also split at characters that JSON allows inside a text, such as U+2028.
    lines = enumerate(text.split("\n"), 1)
    names = SOURCES if written == "pairs" else PROMPTS
    rows = [_row(line, f"{path}:{number}", columns or {}, names) for number, line in lines if line.strip()]
    if not rows:
        raise DataError('holds no rows; write one JSON object a line: {"prompt": …}', where=str(path))
    return rows


def write_completions(path: Path, rows: Sequence[PromptRow], completions: Iterable[dict[str, Any]]) -> None:
    """Write the rows with what was added to each; raises what `write_rows` does."""
    write_rows(path, "".join(lines(rows, completions)))


def write_rows(path: Path, text: str) -> None:
    """Write JSON Lines: the whole file or nothing.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path)) from error


def lines(rows: Sequence[PromptRow], completions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Each row with its completion, as a line of JSON; no script is escaped."""
    for row, added in zip(rows, completions, strict=True):
        yield json.dumps({**row.row, **added}, ensure_ascii=False) + "\n"


def _row(line: str, where: str, columns: Mapping[str, str], names: Sequence[str]) -> PromptRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON: {error}", where=where) from error
    if not isinstance(row, dict):
        raise DataError('is not a JSON object; write {"prompt": …}', where=where)
    if _HALF.search(json.dumps(row, ensure_ascii=False)):
        raise DataError(
            "holds half of a surrogate pair, which is no character; mend its \\u escape", where=where
        )
    if taken := [name for name in ADDED if name in row]:
        raise DataError(
            f"has the key {taken[0]!r} already, which the result would overwrite; rename it", where=where
        )
    try:
        return PromptRow(where, row, _prompt(row, columns, names))
    except DataError as error:
        raise DataError(error.message, where=where) from error


def _prompt(row: dict[str, Any], columns: Mapping[str, str], names: Sequence[str]) -> Prompt:
    """The row's prompt, read as the training format that has such a column reads it."""
    named = {name: name if name in row else columns.get(name, name) for name in (*names, "input")}
    found = [name for name in names if named[name] in row]
    if len(found) != 1:
        listed = ", ".join(f"`{name}`" for name in dict.fromkeys(named[name] for name in names))
        if found:
            raise DataError(f"has {' and '.join(f'`{named[name]}`' for name in found)}; keep one of them")
        raise DataError(f"has no prompt: none of {listed}; {did_you_mean(next(iter(row), ''), names)}")
    column = named[found[0]]
    if found[0] in {"prompt", "source"}:
        return string(row[column], column)
    if found[0] == "instruction":
        about = row.get(named["input"])
        return Instruction(
            string(row[column], column), "" if about is None else string(about, named["input"]), ""
        )
    read: Chat = load_format("chat")({column: row[column]})  # type: ignore[assignment]  # what this format gives
    return read.messages


def answer(generator: Generator, rows: Sequence[PromptRow], batch_size: int) -> list[dict[str, Any]]:
    """What the generator adds to each row, in order.

    Raises:
        DataError: a prompt that cannot be used; its row is named, and nothing has been generated yet.
    """
    prompts = []
    for row in rows:
        try:
            prompts.append(generator.encode(row.prompt))
        except DataError as error:
            raise DataError(error.message, where=row.where) from error
    return [dict(completion.as_dict()) for completion in generator.complete(prompts, batch_size)]
