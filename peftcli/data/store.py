"""Encoded rows in memory, one array a column for all of them: a row costs its tokens and little else."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Row, row_length


class RowStore(Sequence[Row]):
    """Rows that have the same keys. Values are 1-d int32 arrays, or anything else, which is kept as it is."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._flat: dict[str, array[int]] = {}
        self._other: dict[str, list[Any]] = {}
        self._starts: dict[str, array[int]] = {}

    def append(self, row: Row) -> None:
        """Add one row."""
        self.lengths.append(row_length(row))
        for key, value in row.items():
            if isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1:
                flat = self._flat.setdefault(key, array("i"))
                self._starts.setdefault(key, array("q", [0]))
                flat.frombytes(value.tobytes())
                self._starts[key].append(len(flat))
            else:
                self._other.setdefault(key, []).append(value)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        at = range(len(self))[index]
        row: Row = {}
        for key, flat in self._flat.items():
            start, end = self._starts[key][at : at + 2]
            row[key] = np.frombuffer(flat, dtype=np.int32)[start:end].copy()
        for key, values in self._other.items():
            row[key] = values[at]
        return row


class Picked(Sequence[Row]):
    """Some rows of a store, in an order of their own; a row may come more than once."""

    def __init__(self, rows: Sequence[Row], lengths: Sequence[int], indices: NDArray[np.int64]) -> None:
        self._rows = rows
        self._indices = indices
        self.lengths: list[int] = [lengths[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[int(self._indices[index])]

    def __iter__(self) -> Iterator[Row]:
        return (self._rows[int(index)] for index in self._indices)
