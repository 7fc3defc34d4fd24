"""metrics.jsonl read back: one curve a metric.

The file may be a stranger's, or still be written: what is no record is counted and passed over, and memory
is bounded whatever it holds.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

METRICS = "metrics.jsonl"
MAX_LINE = 65_536  # bytes
MAX_CURVES = 64
MAX_NUMBER = (
    1e150  # differences and ratios of such numbers, and of those that are smaller by as much, are finite
)

Record = dict[str, float]


@dataclass(slots=True)
class Curve:
    """A metric over the steps."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        """One point more."""
        self.steps.append(step)
        self.values.append(value)

    def at(self, step: float) -> float | None:
        """The last value that was logged at a step."""
        found = [value for logged, value in zip(self.steps, self.values, strict=True) if logged == step]
        return found[-1] if found else None

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(slots=True)
class History:
    """What was logged. `seconds` are of training: without evaluations and checkpoints, as far as was logged."""

    curves: dict[str, Curve] = field(default_factory=dict)
    passed_over: int = 0
    seconds: float = 0.0

    def last(self, name: str) -> float | None:
        """The last value of a curve, None where there is none."""
        curve = self.curves.get(name)
        return curve.values[-1] if curve else None

    def peak(self, name: str) -> float | None:
        """The greatest value of a curve."""
        curve = self.curves.get(name)
        return max(curve.values) if curve else None

    @property
    def complaints(self) -> list[str]:
        """What could not be read, in words."""
        text = f"lines of {METRICS} that are no records, left out: {self.passed_over:,}"
        return [text] if self.passed_over else []

    @property
    def evaluated(self) -> dict[str, Curve]:
        """The curves of evaluations, by name."""
        return {name: curve for name, curve in self.curves.items() if name.startswith("eval_")}

    @property
    def evaluations(self) -> list[float]:
        """The steps at which there was one, in order."""
        return sorted({step for curve in self.evaluated.values() for step in curve.steps})

    @property
    def last_step(self) -> float | None:
        """The last step that anything was logged at."""
        return max((step for curve in self.curves.values() for step in curve.steps), default=None)

    def add(self, record: Record) -> None:
        """One line of the file."""
        step = record.pop("step")
        if rate := record.get("tokens_per_second"):
            self.seconds += max(0.0, record.get("tokens", 0.0) - (self.last("tokens") or 0.0)) / rate
        for name, value in record.items():
            if name in self.curves or len(self.curves) < MAX_CURVES:
                self.curves.setdefault(name, Curve()).add(step, value)


def read_history(folder: Path) -> History:
    """What a run has logged so far; nothing where the file is not there."""
    history, path = History(), folder / METRICS
    if path.is_file():
        with path.open("rb") as file:
            for record in _records(file):
                if record is None:
                    history.passed_over += 1
                else:
                    history.add(record)
    return history


def finite(value: object) -> float | None:
    """The value as a number that one can draw, None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value) if abs(value) >= 1 / MAX_NUMBER else 0.0
    return None


def _records(file: BinaryIO) -> Iterator[Record | None]:
    """Each line's record, None for a line that is none; a last line that is only half written is left out."""
    while line := file.readline(MAX_LINE):
        whole = line.endswith(b"\n")
        record = _record(line)
        if record is not None or whole or len(line) == MAX_LINE:
            yield record
        while not whole and (rest := file.readline(MAX_LINE)):
            whole = rest.endswith(b"\n")


def _record(line: bytes) -> Record | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8, and integers of thousands of digits
        return None
    if not isinstance(found, dict):
        return None
    numbers = {name: number for name, value in found.items() if (number := finite(value)) is not None}
    return numbers if numbers.get("step", math.nan) >= 0 else None
