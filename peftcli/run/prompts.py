"""Prompts from a JSON Lines file, and completions to one: a row in, the same row with its completion out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import DataError, did_you_mean
from peftcli.files import write_text
from peftcli.run.generate import Generator

# JSON's escapes can write one half of a surrogate pair; no tokenizer takes it, and UTF-8 cannot hold it.
_HALF = re.compile("[\ud800-\udfff]")

# What `complete` adds to a row; a row that brings one of these would lose it.
ADDED = ("completion", "tokens", "finish_reason")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the file: where it stands, the whole row, and what of it is the prompt."""

    where: str
    row: dict[str, Any]
    prompt: str | list[dict[str, str]]


def read_prompts(path: Path) -> list[PromptRow]:
    """The rows of a JSON Lines file: each has `prompt` (text) or `messages` (a chat).

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
    rows = [_row(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise DataError('holds no rows; write one JSON object a line: {"prompt": …}', where=str(path))
    return rows


def write_completions(path: Path, rows: Sequence[PromptRow], completions: Iterable[dict[str, Any]]) -> None:
    """Write the rows with what was added to each: the whole file or nothing.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        write_text(path, "".join(lines(rows, completions)))
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path)) from error


def lines(rows: Sequence[PromptRow], completions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Each row with its completion, as a line of JSON; no script is escaped."""
    for row, added in zip(rows, completions, strict=True):
        yield json.dumps({**row.row, **added}, ensure_ascii=False) + "\n"


def _row(line: str, where: str) -> PromptRow:
    try:
        row = json.loads(line)
    except ValueError as error:
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
    if ("prompt" in row) == ("messages" in row):
        hint = did_you_mean(next(iter(row), ""), ["prompt", "messages"])
        both = (
            "both `prompt` and `messages`; keep one"
            if "prompt" in row
            else f"neither `prompt` nor `messages`; {hint}"
        )
        raise DataError(f"has {both}", where=where)
    prompt = row["messages"] if "messages" in row else row["prompt"]
    if not (_is_chat(prompt) if "messages" in row else isinstance(prompt, str)):
        raise DataError(
            "`prompt` must be text, `messages` a list of objects with the texts `role` and `content`",
            where=where,
        )
    return PromptRow(where, row, prompt)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in value
    )


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
    return [completion.as_dict() for completion in generator.complete(prompts, batch_size)]
