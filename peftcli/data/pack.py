"""Several rows in one sequence, so that batches have little padding.

A packed row has `position_ids` that start again at 0 with each of its rows, and no label on the first token
of a row: nothing of its own stands before it. Without an attention mask, Transformers keeps rows apart
where positions start again (`masking_utils.find_packed_sequence_indices`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftcli.data.example import Row
from peftcli.data.store import Picked
from peftcli.data.tokens import IGNORED


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Which rows share a sequence of at most `limit` tokens.

    Rows go, longest first, each to the fullest sequence that has room for it (best fit decreasing: at most
    11/9 of the fewest sequences there can be; Johnson, "Near-optimal bin packing algorithms", 1973).
    """
    bins: list[list[int]] = []
    # (room left, bin), in order, so that the fullest bin with room is found by bisection.
    rooms: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[row]
        at = bisect_left(rooms, (length, -1))
        if at == len(rooms):
            room, chosen = limit, len(bins)
            bins.append([])
        else:
            room, chosen = rooms.pop(at)
        bins[chosen].append(row)
        # Full bins never come up again.
        if room > length:
            insort(rooms, (room - length, chosen))
    return bins


class PackedRows(Sequence[Row]):
    """Sequences that hold several rows each."""

    def __init__(self, rows: Picked, limit: int) -> None:
        self._rows = rows
        self._bins = pack(rows.lengths, limit)
        self.lengths: list[int] = [sum(rows.lengths[row] for row in each) for each in self._bins]

    def places(self, index: int) -> list[str]:
        """Where the sequence's rows come from."""
        return [place for row in self._bins[index] for place in self._rows.places(row)]

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: Any) -> Any:
        rows = [self._rows[row] for row in self._bins[index]]
        labels = [row["labels"].copy() for row in rows]
        for each in labels:
            each[0] = IGNORED
        return {
            "input_ids": np.concatenate([row["input_ids"] for row in rows]),
            "labels": np.concatenate(labels),
            "position_ids": np.concatenate(
                [np.arange(len(row["input_ids"]), dtype=np.int32) for row in rows]
            ),
        }
