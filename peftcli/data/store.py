"""Encoded rows in memory, one array a column for all of them: a row costs its tokens and little else."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Row, row_length
from peftcli.data.readers import place
from peftcli.data.sources import RawRow


class RowStore(Sequence[Row]):
    """Rows that have the same keys. Values are 1-d int32 arrays, or anything else, which is kept as it is."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._origins: list[str] = []
        # Of each row: its origin's number, its own number in it, and its line (0 where it has none).
        self._places = array("q")
        self._flat: dict[str, array[int]] = {}
        self._other: dict[str, list[Any]] = {}
        self._starts: dict[str, array[int]] = {}

    def append(self, row: Row, raw: RawRow | None = None) -> None:
        """Add one row; `raw` is the one that it comes from."""
        self.lengths.append(row_length(row))
        if raw is not None:
            if not self._origins or self._origins[-1] != raw.origin:
                self._origins.append(raw.origin)
            self._places.extend((len(self._origins) - 1, raw.number, raw.line or 0))
        for key, value in row.items():
            if isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1:
                flat = self._flat.setdefault(key, array("i"))
                self._starts.setdefault(key, array("q", [0]))
                flat.frombytes(value.tobytes())
                self._starts[key].append(len(flat))
            else:
                self._other.setdefault(key, []).append(value)

    def place(self, index: int) -> str:
        """Where the row comes from: its file and number."""
        origin, number, line = self._places[3 * index : 3 * index + 3]
        return place(self._origins[origin], number, line or None)

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

    def __init__(self, rows: RowStore, lengths: Sequence[int], indices: NDArray[np.int64]) -> None:
        self._rows = rows
        self._indices = indices
        self.lengths: list[int] = [lengths[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[int(self._indices[index])]

    def only(self, chosen: NDArray[np.int64]) -> Picked:
        """These of the rows, in this order."""
        return Picked(self._rows, self._rows.lengths, self._indices[chosen])

    def places(self, index: int) -> list[str]:
        """Where the row comes from."""
        return [self._rows.place(int(self._indices[index]))]

    def __iter__(self) -> Iterator[Row]:
        return (self._rows[int(index)] for index in self._indices)
