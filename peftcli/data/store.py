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

    @property
    def origins(self) -> list[str]:
        """The files that rows come from, one after another."""
        return self._origins

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """All rows as arrays, for `of`; None where there is more in them than numbers."""
        if self._other:
            return None
        found: dict[str, NDArray[Any]] = {
            "lengths": np.asarray(self.lengths, dtype=np.int64),
            "places": np.frombuffer(self._places, dtype=np.int64),
        }
        for key, flat in self._flat.items():
            found[f"flat.{key}"] = np.frombuffer(flat, dtype=np.int32)
            found[f"starts.{key}"] = np.frombuffer(self._starts[key], dtype=np.int64)
        return found

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]], origins: list[str]) -> RowStore:
        """The store that `arrays` was made of.

        Raises:
            KeyError, ValueError: the arrays are none of these.
        """
        store = cls()
        store.lengths, store._origins = arrays["lengths"].tolist(), origins
        store._places.frombytes(arrays["places"].tobytes())
        for key in [name.removeprefix("flat.") for name in arrays if name.startswith("flat.")]:
            flat, starts = arrays[f"flat.{key}"], arrays[f"starts.{key}"]
            if flat.dtype != np.int32 or len(starts) != len(store) + 1 or starts[-1] != len(flat):
                raise ValueError(key)
            store._flat[key], store._starts[key] = array("i"), array("q")
            store._flat[key].frombytes(flat.tobytes())
            store._starts[key].frombytes(starts.tobytes())
        if len(store._places) != 3 * len(store):
            raise ValueError("places")
        return store

    def extend(self, other: RowStore) -> None:
        """Adds another store's rows, which have the same keys."""
        places = np.array(other._places, dtype=np.int64).reshape(-1, 3)
        places[:, 0] += len(self._origins)
        self._origins += other._origins
        self._places.frombytes(places.tobytes())
        self.lengths += other.lengths
        for key, flat in other._flat.items():
            mine = self._flat.setdefault(key, array("i"))
            starts = np.array(other._starts[key])[1:] + len(mine)
            self._starts.setdefault(key, array("q", [0])).frombytes(starts.astype(np.int64).tobytes())
            mine.extend(flat)
        for key, values in other._other.items():
            self._other.setdefault(key, []).extend(values)

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
