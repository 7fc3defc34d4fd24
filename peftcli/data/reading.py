"""One pass over one source: raw rows to encoded ones, batch by batch, with everything counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.data.columns import Format, check_renames, guess_format, load_format, select, unused
from peftcli.data.example import Encoder, Example, Row
from peftcli.data.overflow import Overflow
from peftcli.data.report import SourceReport, file_sha256
from peftcli.data.sources import RawRow, read_rows
from peftcli.errors import DataError, RecipeError
from peftcli.recipe.schema import Source
from peftcli.registry import FORMATS

_BATCH = 256  # rows that the tokenizer sees at a time


@dataclass(frozen=True, slots=True)
class Encoding:
    """What is the same for every source of a run."""

    encoder: Encoder
    limit: int | None
    overflow: str
    streaming: bool = False
    predicting: bool = False
    """Rows need not have what is to be predicted, and none is left out."""


class SourceReading:
    """Reads a source once; `report` counts what has been read so far."""

    def __init__(self, source: Source, encoding: Encoding) -> None:
        self.report = SourceReport(source.path, source.type or "", weight=source.weight)
        self._source = source
        self._encoding = encoding
        self._overflow: Overflow | None = None
        # Files that rows name, in their order: what they hold is the data's, too.
        self._named_files: dict[str, None] = {}

    def examples(self) -> Iterator[list[Row]]:
        """The rows of each example, in order; raises what `pairs` does."""
        return (rows for _, rows in self.pairs())

    def pairs(self) -> Iterator[tuple[RawRow, list[Row]]]:
        """Each row as its file has it, with the encoded rows of its example.

        Raises:
            DataError: naming the row.
            RecipeError: where a setting does not fit the source's format.
            HubError: where the Hub cannot be reached.
        """
        batch: list[tuple[RawRow, Example]] = []
        # Streamed rows come in smaller batches, so that a step does not wait for hundreds of them.
        size = _BATCH // 8 if self._encoding.streaming else _BATCH
        found: Format | None = None
        for raw in read_rows(self._source, streaming=self._encoding.streaming):
            if found is None:
                found = self._open(raw)
            if raw.line is not None and Path(raw.origin).suffix == ".txt":
                self.report.blank_lines[raw.origin] = raw.line - raw.number
            self.report.document_marks += raw.marks
            batch.append((raw, self._example(found, raw)))
            if len(batch) == size:
                yield from self._encoded(batch)
                batch = []
        yield from self._encoded(batch)
        if self._overflow is not None:
            self._overflow.check()
        if self._named_files:
            digests = (bytes.fromhex(file_sha256(Path(name))) for name in self._named_files)
            what = f"what {self._source.path} names"
            self.report.sha256[what] = hashlib.sha256(b"".join(digests)).hexdigest()

    def _open(self, raw: RawRow) -> Format:
        """The source's format, told or guessed from its first row."""
        source = self._source
        try:
            if source.type is None:
                found, self.report.guessed_from = guess_format(
                    self._encoding.encoder.formats, raw.columns, source.columns
                )
            else:
                found = self._named(source.type)
            if self._encoding.predicting:
                found = found.without_targets()
            check_renames(found, source.columns)
            self.report.unused_columns = unused(found, source.columns, raw.columns)
        except DataError as error:
            raise DataError(error.message, where=raw.where) from None
        self.report.type = found.name
        self._overflow = Overflow(
            self._encoding.limit, self._encoding.overflow, self.report, self._encoding.encoder
        )
        return found

    def _named(self, name: str) -> Format:
        if name in FORMATS and name not in self._encoding.encoder.formats:
            known = ", ".join(self._encoding.encoder.formats)
            raise RecipeError(f"data: type '{name}' is not for this task_type; use one of: {known}")
        return load_format(name)

    def _example(self, found: Format, raw: RawRow) -> Example:
        try:
            columns = select(found, self._source.columns, raw.columns)
            for name in found.files:
                value = columns.get(name)
                columns[name] = _beside(raw.origin, name, value)
                if isinstance(value, str) and not (self._encoding.streaming or self._encoding.predicting):
                    self._named_files[columns[name]] = None
            return found(columns)
        except DataError as error:
            raise DataError(error.message, where=raw.where) from None

    def _encoded(self, batch: Sequence[tuple[RawRow, Example]]) -> Iterator[tuple[RawRow, list[Row]]]:
        if not batch:
            return
        assert self._overflow is not None
        try:
            encoded = self._encoding.encoder.encode([example for _, example in batch])
        except DataError:
            encoded = [self._encode_one(raw, example) for raw, example in batch]
        for (raw, _), rows in zip(batch, encoded, strict=True):
            self.report.rows += 1
            kept = [piece for row in rows for piece in self._overflow.apply(row, raw.where)]
            if self._encoding.streaming:
                self._overflow.check()
            yield raw, kept

    def _encode_one(self, raw: RawRow, example: Example) -> list[Row]:
        """One row alone, so that the error names it."""
        try:
            return self._encoding.encoder.encode([example])[0]
        except DataError as error:
            raise DataError(error.message, where=raw.where) from None


def _beside(origin: str, column: str, value: Any) -> Any:
    """The file that a column names, found from the folder that the rows' own file stands in; else the value.

    Raises:
        DataError: where there is no such file.
    """
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    found = path if path.is_absolute() else Path(origin).parent / path
    if not found.is_file():
        raise DataError(f"{column}: there is no file {value!r} (looked for {found})")
    return str(found)
