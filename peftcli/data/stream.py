"""Rows read and encoded as they are needed, so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from peftcli.data.example import Row
from peftcli.data.reading import Encoding, SourceReading
from peftcli.data.report import SourceReport
from peftcli.errors import DataError
from peftcli.recipe.schema import Source

BUFFER = 1000
"""Rows among which the next one is drawn."""


class StreamedRows:
    """The rows of some sources, read anew in every epoch.

    `sources` reports what was read, cut and dropped in the current epoch so far.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoding: Encoding,
        *,
        seed: int,
        order_seed: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.sources: list[SourceReport] = []
        self._sources = sources
        self._encoding = encoding
        self._seed = seed
        self._order_seed = seed if order_seed is None else order_seed
        self._shuffle = shuffle

    def rows(self, epoch: int, *, shuffle: bool | None = None) -> Iterator[Row]:
        """The rows of one epoch: sources interleaved by weight, in an order that order_seed and epoch decide.

        Which rows a fractional weight takes is the seed's alone: they are the same in every epoch.

        Args:
            epoch: From 0.
            shuffle: Draw each row from a buffer of BUFFER rows; else the files' own order. Default: as this was made.

        Raises:
            DataError: naming the row; and where a source has no row to train on.
        """
        self.sources = []
        streams = [self._weighted(source, number) for number, source in enumerate(self._sources)]
        mixed = _interleave(streams, [source.weight for source in self._sources])
        if not (self._shuffle if shuffle is None else shuffle):
            return mixed
        return _shuffled(mixed, np.random.default_rng([self._order_seed, epoch]))

    def _weighted(self, source: Source, number: int) -> Iterator[Row]:
        """Every row `int(weight)` times, pass after pass, and a fixed random part of them once more."""
        for _ in range(int(source.weight)):
            yield from self._pass(source)
        part = source.weight - int(source.weight)
        if part:
            draw = np.random.default_rng([self._seed, number])
            yield from (row for row in self._pass(source) if draw.random() < part)

    def _pass(self, source: Source) -> Iterator[Row]:
        reading = SourceReading(source, self._encoding)
        self.sources.append(reading.report)
        empty = True
        for rows in reading.examples():
            for row in rows:
                empty = False
                yield row
        if empty:
            raise DataError("all rows were dropped; raise data.max_length", where=source.path)


def _interleave(streams: Sequence[Iterator[Row]], weights: Sequence[float]) -> Iterator[Row]:
    """Rows in turn, each stream as often as its weight says, until all have ended."""
    given = [0] * len(streams)
    alive = list(range(len(streams)))
    while alive:
        chosen = min(alive, key=lambda at: ((given[at] + 1) / weights[at], at))
        row = next(streams[chosen], None)
        if row is None:
            alive.remove(chosen)
        else:
            given[chosen] += 1
            yield row


def _shuffled(rows: Iterator[Row], draw: np.random.Generator) -> Iterator[Row]:
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < BUFFER:
            buffer.append(row)
            continue
        at = int(draw.integers(BUFFER))
        buffer[at], row = row, buffer[at]  # noqa: PLW2901 — the row that leaves is not the one that came
        yield row
    draw.shuffle(buffer)
    yield from buffer
