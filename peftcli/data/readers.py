"""One reader a kind of file: each streams rows, and its errors name the row.

A reader yields `(line, row)`: `line` is where the row starts, None where the file has no lines. It may add how many
lines before the row mark documents, and are no rows. Text files are split at line feeds alone (a carriage return
before one belongs to it), so that NUL, U+2028 and other characters at which `str.splitlines` would split stay inside
the text.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftcli.errors import DataError

Located = tuple[int | None, dict[str, Any]] | tuple[int | None, dict[str, Any], int]
Reader = Callable[[Path], Iterator[Located]]

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256


def place(origin: str | Path, row: int, line: int | None = None) -> str:
    """Where a row stands, as errors name it: its number from 1, and its line where that is another number."""
    return f"{origin}: row {row}" + (f" (line {line})" if line is not None and line != row else "")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(_BOM)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        raise DataError(f"not UTF-8 ({found}); convert the file to UTF-8", where=where) from None


def read_jsonl(path: Path) -> Iterator[Located]:
    """One JSON object a line; blank lines are no rows."""
    row_number = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        row_number += 1
        where = place(path, row_number, number)
        try:
            row = json.loads(_decode(line, where).rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"broken JSON: {_json_problem(error)}", where=where) from None
        yield number, _object(row, where)


def read_json(path: Path) -> Iterator[Located]:
    """A list of objects, or one object whose only list holds them. The file is read as a whole."""
    text = _decode(b"".join(_lines(path)), str(path))
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; for one object a line name the file .jsonl" if error.msg == "Extra data" else ""
        problem = f"broken JSON: {error.msg} at line {error.lineno} column {error.colno}{hint}"
        raise DataError(problem, where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON: {_json_problem(error)}", where=str(path)) from None
    for number, row in enumerate(_only_list(content, path), start=1):
        yield None, _object(row, place(path, number))


def _only_list(content: Any, path: Path) -> list[Any]:
    if isinstance(content, list):
        return content
    lists: list[list[Any]] = []
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
    if len(lists) == 1:
        return lists[0]
    found = f"an object with {len(lists)} lists" if isinstance(content, dict) else _json_kind(content)
    raise DataError(f"expected a list of objects, or an object with one list, not {found}", where=str(path))


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be a JSON object, not {_json_kind(row)}", where=where)
    return row


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"


def _json_kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "an object")


def read_csv(path: Path) -> Iterator[Located]:
    """Comma-separated values with a header line, quoted as in RFC 4180; all values are text."""
    return _delimited(path, ",")


def read_tsv(path: Path) -> Iterator[Located]:
    """Tab-separated values with a header line, quoted as CSV is."""
    return _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> Iterator[Located]:
    # The limit is the csv module's own, for the whole process; a long document in one cell is no mistake.
    csv.field_size_limit(sys.maxsize)
    text = (_decode(line, f"{path}: line {number}") for number, line in enumerate(_lines(path), start=1))
    cells_of = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        line = cells_of.line_num + 1
        try:
            cells = next(cells_of, None)
        except csv.Error as error:
            advice = (
                "a cell with quotes or line ends stands in double quotes, with the quotes inside it doubled"
            )
            raise DataError(f"{error}; {advice}", where=place(path, number + 1, line)) from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(cells, path)
            continue
        number += 1
        if len(cells) != len(header):
            found = f"{len(cells)} cells, but the header has {len(header)}"
            raise DataError(found, where=place(path, number, line))
        yield line, dict(zip(header, cells, strict=True))


def _header(cells: list[str], path: Path) -> list[str]:
    twice = sorted(name for name, count in Counter(cells).items() if count > 1)
    if twice:
        raise DataError(f"the header names the column '{twice[0]}' twice", where=f"{path}: line 1")
    return cells


def read_txt(path: Path) -> Iterator[Located]:
    """One row a line, as {text}; blank lines are no rows."""
    row_number = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        row_number += 1
        text = _decode(line, place(path, row_number, number))
        yield number, {"text": text.removesuffix("\n").removesuffix("\r")}


def read_conll(path: Path) -> Iterator[Located]:
    """A sentence a row, as {tokens, tags}: a line a word, a blank line between sentences.

    The first column of a line is the word and the last one its tag; a file of one column has no tags. Columns stand
    apart by tabs where a line has one, else by spaces. `-DOCSTART-` lines are passed over.
    """
    words: list[list[str]] = []
    start = marks = row_number = width = 0
    for number, encoded in enumerate(_lines(path), start=1):
        where = place(path, row_number + 1, number)
        line = _decode(encoded, where).rstrip("\r\n")
        is_mark = line.startswith("-DOCSTART-")
        if is_mark or not line.strip(" \t"):
            if words:
                row_number += 1
                yield start, _sentence(words), marks
                words, marks = [], 0
            marks += is_mark
            continue
        cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
        width = width or len(cells)
        if len(cells) != width:
            found = f"a line of {len(cells)} columns, but those before have {width}"
            raise DataError(f"{found}; write a word, its columns and its tag a line", where=where)
        start = start if words else number
        words.append(cells)
    if words:
        yield start, _sentence(words), marks


def _sentence(words: list[list[str]]) -> dict[str, Any]:
    tags = {"tags": [cells[-1] for cells in words]} if len(words[0]) > 1 else {}
    return {"tokens": [cells[0] for cells in words], **tags}


def read_parquet(path: Path) -> Iterator[Located]:
    """A Parquet table, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield None, row
    except (pa.ArrowException, OSError) as error:
        # The first line of Arrow's message says it; the rest is its own source code.
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"not a readable Parquet file: {said}", where=f"{path}: after row {number}") from None
    except UnicodeDecodeError:
        where = f"{path}: rows {number + 1} to {number + _PARQUET_ROWS}"
        raise DataError("a text column holds bytes that are not UTF-8", where=where) from None


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_txt,
    ".conll": read_conll,
    ".parquet": read_parquet,
}
