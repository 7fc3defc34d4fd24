"""What preparing the data found: counts to print before training, and to keep with the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.example import Encoder, Row, row_length


@dataclass(slots=True)
class PartReport:
    """Training or evaluation: the rows of one epoch, after dropping, splitting and mixing."""

    rows: int = 0
    tokens: int = 0
    """0 where rows have none (images)."""
    trained_tokens: int | None = 0
    """None where what is trained is the row."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens a row: min, median, p95, max."""
    other_lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same for other columns of tokens, such as targets."""
    packed: int | None = None
    """Sequences that the rows were packed into."""

    def measure(self, rows: Sequence[Row], encoder: Encoder) -> None:
        """Count rows, their tokens where they have any, and those that are trained."""
        self.rows = len(rows)
        self.trained_tokens = None if encoder.trained is None else sum(map(encoder.trained, rows))
        lengths = [row_length(row) for row in rows if "input_ids" in row]
        self.tokens = sum(lengths)
        self.lengths = _spread(lengths)
        for limit in encoder.limits:
            others = [len(row[limit.column]) for row in rows]
            self.tokens += 0 if limit.unit else sum(others)
            if any(others):
                self.other_lengths[limit.unit or limit.name] = _spread(others)

    def line(self) -> str:
        """The counts for a reader."""
        text = f"{self.rows:,} rows"
        if self.tokens:
            text += f", {self.tokens:,} tokens"
        if self.trained_tokens is not None:
            share = 100 * self.trained_tokens / max(1, self.tokens)
            text += f", {self.trained_tokens:,} trained ({share:.0f} %)"
        for what, lengths in (("", self.lengths), *self.other_lengths.items()):
            if lengths:
                spread = ", ".join(f"{name} {value:,}" for name, value in lengths.items())
                text += f"; {what + ' ' if what else ''}length {spread}"
        if self.packed is not None:
            text += f"; packed into {self.packed:,} sequences"
        return text


@dataclass(slots=True)
class SourceReport:
    """One source: how it was read, what came of it."""

    path: str
    type: str
    guessed_from: list[str] = field(default_factory=list)
    """The columns that the type was guessed from; empty where the recipe says the type."""
    unused_columns: list[str] = field(default_factory=list)
    weight: float = 1.0
    rows: int = 0
    """Rows read."""
    truncated: int = 0
    truncated_at: list[str] = field(default_factory=list)
    """The limits that rows were cut at, by the recipe's keys."""
    dropped: int = 0
    split_rows: int = 0
    split_pieces: int = 0
    blank_lines: dict[str, int] = field(default_factory=dict)
    """For each .txt file: lines that are no rows."""
    document_marks: int = 0
    """-DOCSTART- lines of .conll files, which are no rows."""
    sha256: dict[str, str] = field(default_factory=dict)
    """For each local file, and for all files together that rows name."""
    kept: str = ""
    """Whether its encoded rows were taken from an earlier start, or could not be kept; no part of what is recorded."""

    def line(self) -> str:
        """How the source was read, for a reader."""
        text = f"{self.path}: type: {self.type}"
        if self.guessed_from:
            column = "column" if len(self.guessed_from) == 1 else "columns"
            text += f" (guessed from the {column} {', '.join(self.guessed_from)})"
        if self.weight != 1.0:
            text += f", weight {self.weight:g}"
        if self.unused_columns:
            text += f"; not used: {', '.join(self.unused_columns)}"
        if blank := sum(self.blank_lines.values()):
            text += f"; {blank:,} blank lines passed over"
        if self.document_marks:
            text += f"; {self.document_marks:,} -DOCSTART- lines passed over"
        if self.kept:
            text += f"; {self.kept}"
        return text

    def losses(self) -> str:
        """What was cut, dropped and split; empty where nothing was."""
        parts = []
        if self.truncated:
            limits = " and ".join(self.truncated_at)
            parts.append(f"{self.truncated:,} of {self.rows:,} rows cut at {limits}: their ends are lost")
        if self.dropped:
            parts.append(f"{self.dropped:,} of {self.rows:,} rows dropped")
        if self.split_rows:
            parts.append(f"{self.split_rows:,} of {self.rows:,} rows split into {self.split_pieces:,} pieces")
        return f"{self.path}: {', '.join(parts)}" if parts else ""


@dataclass(slots=True)
class DataReport:
    """All of it. Where rows are streamed, the counts are those of the first rows only (`streaming`)."""

    train: PartReport = field(default_factory=PartReport)
    eval: PartReport | None = None
    train_sources: list[SourceReport] = field(default_factory=list)
    eval_sources: list[SourceReport] = field(default_factory=list)
    max_length: int | None = None
    streaming: bool = False
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What to print, a line each, labels in one column."""
        found = [("train", self.train.line())]
        if self.streaming:
            found = [("train", f"streaming, counted as read; of the first rows: {self.train.line()}")]
        if self.eval is not None:
            found.append(("eval", self.eval.line()))
        for source in [*self.train_sources, *self.eval_sources]:
            found.append(("source", source.line()))
            if losses := source.losses():
                found.append(("overflow", losses))
        found += [("note", text) for text in self.notes]
        found += [("warning", text) for text in self.warnings]
        return [f"{label:<8}  {text}" for label, text in found]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON and the lock file."""
        found = asdict(self)
        for source in [*found["train_sources"], *found["eval_sources"]]:
            del source["kept"]
        return found


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    """How long rows are; nothing of no rows."""
    if not lengths:
        return {}
    # "higher" gives lengths that some row has.
    low, middle, most, high = np.quantile(lengths, [0, 0.5, 0.95, 1], method="higher").tolist()
    return {"min": int(low), "median": int(middle), "p95": int(most), "max": int(high)}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
