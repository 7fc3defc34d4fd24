"""From the recipe's `data` section to rows to train on: read, encode, cut, mix, pack, count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from peftcli.data.example import Encoder
from peftcli.data.kept import SourceRows, source_rows
from peftcli.data.mix import Indices, split_for_eval, weighted
from peftcli.data.overflow import effective_limit
from peftcli.data.pack import PackedRows
from peftcli.data.reading import Encoding
from peftcli.data.report import DataReport, PartReport, SourceReport
from peftcli.data.store import Picked, RowStore
from peftcli.data.stream import StreamedRows
from peftcli.errors import DataError, RecipeError
from peftcli.recipe.schema import Data, Source

_PROBE = 200  # rows that are counted before streaming starts

MapRows = Picked | PackedRows
"""Rows that have a number: `len()`, `[index]`, and `lengths` in tokens."""


@dataclass(slots=True)
class Prepared:
    """Rows to train on and to evaluate on, and what was found on the way."""

    train: MapRows | StreamedRows
    eval: MapRows | None
    report: DataReport


def prepare(
    data: Data,
    *,
    encoder: Encoder,
    seed: int,
    order_seed: int | None = None,
    shuffle: bool = True,
    model_max_length: int | None,
) -> Prepared:
    """Read and encode the rows of the recipe's sources (of streamed ones the first few).

    Args:
        data: The recipe's `data`.
        encoder: The task's part in it.
        seed: Decides the evaluation part and which rows a fractional weight takes.
        order_seed: Decides the order of streamed rows; default: seed.
        shuffle: Whether streamed rows come in a random order.
        model_max_length: In tokens, for recipes that set no max_length; None where the model has no limit.

    Raises:
        DataError: naming the row, where one cannot be read, encoded or trained on.
        RecipeError: where settings contradict one another.
        HubError: where a Hub data set cannot be fetched.
    """
    limit = effective_limit(data.max_length, model_max_length)
    report = DataReport(max_length=limit, streaming=data.streaming)
    encoding = Encoding(encoder, limit, data.overflow)
    _check(data, limit)
    fraction = data.eval if isinstance(data.eval, float) else None
    held: Picked | None = None
    train: Picked | StreamedRows
    if data.streaming:
        streamed = StreamedRows(
            data.train, streaming(encoding), seed=seed, order_seed=order_seed, shuffle=shuffle
        )
        encoder.settle()
        train = _probed(streamed, report, encoder)
    else:
        train, held = _load(data.train, encoding, seed, report.train_sources, fraction)
        encoder.settle()
        report.train.measure(train, encoder)
    if data.eval is not None and not isinstance(data.eval, float):
        held, _ = _load(data.eval, encoding, seed, report.eval_sources)
    if held is not None:
        report.eval = PartReport()
        report.eval.measure(held, encoder)
    if data.max_length and model_max_length and data.max_length > model_max_length:
        report.warnings.append(
            f"max_length {data.max_length:,} is more than the model's {model_max_length:,}"
        )
    report.notes += encoder.notes()
    report.warnings += encoder.remarks()
    if data.packing and limit is not None and isinstance(train, Picked):
        return Prepared(
            _packed(train, limit, report.train),
            None if held is None else _packed(held, limit, report.eval),
            report,
        )
    return Prepared(train, held, report)


def prepare_rows(
    sources: Sequence[Source], data: Data, *, encoder: Encoder, model_max_length: int | None
) -> tuple[Picked, list[SourceReport]]:
    """The rows of some sources, each once, encoded as `data` says; raises what `prepare` does."""
    encoding = Encoding(encoder, effective_limit(data.max_length, model_max_length), data.overflow)
    reports: list[SourceReport] = []
    rows, _ = _load(sources, encoding, 0, reports)
    return rows, reports


def _check(data: Data, limit: int | None) -> None:
    if data.packing and limit is None:
        raise RecipeError("data.packing: how long may sequences be? set data.max_length")
    if data.streaming and data.packing:
        raise RecipeError(
            "data.packing: rows that are streamed cannot be packed; set one of the two to false"
        )
    if data.streaming and isinstance(data.eval, float):
        raise RecipeError("data.eval: a fraction of streamed rows is not known; name a source instead")


def _packed(rows: Picked, limit: int, part: PartReport | None) -> PackedRows:
    packed = PackedRows(rows, limit)
    if part is not None:
        part.packed = len(packed)
    return packed


@dataclass(slots=True)
class _Pool:
    """All rows of some sources, before mixing."""

    rows: RowStore = field(default_factory=RowStore)
    examples: list[int] = field(default_factory=list)
    """Which example, counted over all sources, each row came from."""
    ends: list[int] = field(default_factory=list)
    """Where each source's rows end."""

    def add(self, source: SourceRows) -> None:
        """The rows of a source."""
        if not len(source.rows):
            gone = f"all {source.report.rows:,} rows were dropped; raise data.max_length"
            raise DataError(gone, where=source.report.path)
        first = self.examples[-1] + 1 if self.examples else 0
        self.examples += [first + example for example in source.examples]
        if len(self.rows):
            self.rows.extend(source.rows)
        else:
            self.rows = source.rows
        self.ends.append(len(self.rows))

    def epoch(self, indices: Indices, sources: Sequence[Source], seed: int) -> Picked:
        """Of these rows those of one epoch, by the sources' weights."""
        groups = np.split(indices, np.searchsorted(indices, self.ends[:-1]))
        return self.pick(weighted(groups, [source.weight for source in sources], seed))

    def pick(self, indices: Indices) -> Picked:
        """These rows."""
        return Picked(self.rows, self.rows.lengths, indices)


def _load(
    sources: Sequence[Source],
    encoding: Encoding,
    seed: int,
    reports: list[SourceReport],
    eval_fraction: float | None = None,
) -> tuple[Picked, Picked | None]:
    """All rows of one epoch, and of the part held back for evaluation (each once, whatever its weight)."""
    pool = _Pool()
    for source in sources:
        found = source_rows(source, encoding)
        reports.append(found.report)
        pool.add(found)
    if eval_fraction is None:
        return pool.epoch(np.arange(len(pool.rows)), sources, seed), None
    if len(set(pool.examples)) < 2:
        raise DataError("data.eval: one row cannot be split; add rows, or name an eval source")
    kept, held = split_for_eval(np.asarray(pool.examples), eval_fraction, seed)
    return pool.epoch(kept, sources, seed), pool.pick(held)


def streaming(encoding: Encoding) -> Encoding:
    """The same way of encoding, for rows that are not read at once."""
    return replace(encoding, streaming=True)


def _probed(streamed: StreamedRows, report: DataReport, encoder: Encoder) -> StreamedRows:
    """Rows to stream, after a look at the first of them, so that what is wrong shows before training."""
    report.train.measure(list(islice(streamed.rows(0, shuffle=False), _PROBE)), encoder)
    report.train_sources += streamed.sources
    return streamed
