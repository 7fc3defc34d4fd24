"""The order of an epoch's rows, and how they are dealt into micro-batches and to processes.

One global micro-batch holds `per_device_train_batch_size × processes` rows; each process takes its own slice
of it. So one process with batches of 8 sees, step by step, the very rows that two processes with batches of 4
see together, and gradient accumulation walks the same order in smaller bites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import Sampler

T = TypeVar("T")
Order = Callable[[int], list[int]]

# A group of this many global batches is sorted by length at a time: enough for little padding, few enough
# that the batches of an epoch differ from those of the next.
_BATCHES_PER_GROUP = 50


def row_order(kind: str, rows: int, lengths: Sequence[int] | None, batch: int, seed: int) -> Order:
    """The function from an epoch's number to its order of rows.

    Args:
        kind: `random`, `sequential` or `group_by_length`.
        rows: how many rows there are.
        lengths: tokens of each row; only `group_by_length` reads it.
        batch: rows of one optimizer step, over all micro-batches and processes.
        seed: with the epoch it decides every random order.
    """
    if kind == "sequential":
        return lambda _: list(range(rows))
    if kind == "group_by_length":
        assert lengths is not None
        return lambda epoch: length_grouped(lengths, batch, _generator(seed + epoch))
    return lambda epoch: _permutation(rows, _generator(seed + epoch))


def length_grouped(lengths: Sequence[int], batch: int, generator: torch.Generator) -> list[int]:
    """Rows of like length side by side, in batches of random order.

    The batch with the longest row comes first, so that memory which does not suffice shows at once; an
    incomplete batch comes last, so that every other one keeps its neighbours.
    """
    shuffled = _permutation(len(lengths), generator)
    group = batch * max(1, min(len(lengths) // (batch * 4), _BATCHES_PER_GROUP))
    ordered: list[int] = []
    for start in range(0, len(shuffled), group):
        ordered += sorted(shuffled[start : start + group], key=lambda row: -lengths[row])
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    tail = batches.pop() if batches and len(batches[-1]) < batch else []
    batches = [batches[i] for i in _permutation(len(batches), generator)]
    if batches:
        longest = max(range(len(batches)), key=lambda i: max(lengths[row] for row in batches[i]))
        batches.insert(0, batches.pop(longest))
    return [row for part in [*batches, tail] for row in part]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _permutation(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator).tolist()]


@dataclass(frozen=True)
class Deal:
    """Which rows of each global micro-batch are this process's."""

    per_device: int
    processes: int = 1
    rank: int = 0

    @property
    def global_rows(self) -> int:
        """Rows of one micro-batch over all processes."""
        return self.per_device * self.processes

    def micro_batches(self, rows: int, *, drop_last: bool) -> int:
        """Global micro-batches of an epoch of so many rows."""
        return rows // self.global_rows if drop_last else math.ceil(rows / self.global_rows)

    def mine(self, batch: Sequence[T]) -> list[T]:
        """This process's share of a global micro-batch: a full slice, or near-even of an incomplete one."""
        if len(batch) == self.global_rows:
            return list(batch[self.rank * self.per_device : (self.rank + 1) * self.per_device])
        share, extra = divmod(len(batch), self.processes)
        start = self.rank * share + min(self.rank, extra)
        return list(batch[start : start + share + (self.rank < extra)])


@dataclass
class DealtBatches(Sampler[list[int]]):
    """The row numbers of this process's micro-batches, epoch by epoch.

    A process that has no row of an incomplete micro-batch gets the first row of it, which `idle` marks: every
    process must take part in every backward pass, and this one's part then counts nothing.
    """

    order: Order
    rows: int
    deal: Deal
    drop_last: bool = False
    epoch: int = 0
    start: int = 0  # micro-batches of this epoch that are already trained on

    def __len__(self) -> int:
        return self.deal.micro_batches(self.rows, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        size = self.deal.global_rows
        for micro in range(self.start, len(self)):
            batch = order[micro * size : (micro + 1) * size]
            yield self.deal.mine(batch) or batch[:1]

    def idle(self, micro: int) -> bool:
        """Whether this process has no row of its own in the epoch's micro-batch number `micro`."""
        size = self.deal.global_rows
        here = min(size, self.rows - micro * size)
        return not self.deal.mine(range(here))
