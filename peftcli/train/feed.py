"""From rows to micro-batches of tensors: the data loaders of training and evaluation, and streamed rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from peftcli.data.example import Row
from peftcli.errors import PeftcliError, RecipeError
from peftcli.recipe.training import Training
from peftcli.tasks.base import Task
from peftcli.train.sampler import Deal, DealtBatches, row_order

Batch = dict[str, Any]
"""Tensors, and what stays on the host."""


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        name: part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
        for name, part in batch.items()
    }


@dataclass(frozen=True)
class MicroBatch:
    """What one process runs forward at once; an idle one's rows are another's and count nothing here."""

    tensors: Batch
    idle: bool = False

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory: PyTorch's loader asks batches of classes like this one for it."""
        pinned = {
            name: part.pin_memory() if isinstance(part, Tensor) else part
            for name, part in self.tensors.items()
        }
        return MicroBatch(pinned, self.idle)


class MapRows(Protocol):
    """Encoded rows that can be had in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


@runtime_checkable
class StreamRows(Protocol):
    """Encoded rows that come one after another."""

    def rows(self, epoch: int) -> Iterator[Row]:
        """The rows of an epoch."""
        ...


class Feed(Protocol):
    """Micro-batches, epoch by epoch, from any place in an epoch on."""

    @property
    def micro_batches(self) -> int | None:
        """How many an epoch has; None where only reading it will tell."""
        ...

    def epoch(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch, without the first `start`."""
        ...

    def places(self, step: int) -> list[str]:
        """Where the rows of an optimizer step (from 1) come from, over all processes; empty where nobody knows."""
        ...


class MapFeed:
    """Rows that are dealt by their numbers, loaded by as many worker processes as the recipe says."""

    def __init__(self, rows: MapRows, task: Task, settings: Training, deal: Deal, *, pin: bool) -> None:
        kind = settings.train_sampling_strategy
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        step_rows = deal.global_rows * settings.gradient_accumulation_steps
        lengths = _lengths(rows)
        if kind == "group_by_length" and lengths is None:
            raise RecipeError("training.train_sampling_strategy: these rows have no lengths to group by")
        order = row_order(kind, len(rows), lengths, step_rows, seed)
        self.sampler = DealtBatches(order, len(rows), deal, settings.dataloader_drop_last)
        if not len(self.sampler):
            raise RecipeError(
                f"{len(rows)} training rows do not fill one batch of {deal.global_rows}, and "
                "training.dataloader_drop_last leaves incomplete ones out; lower per_device_train_batch_size"
            )
        self.rows, self.accumulation = rows, settings.gradient_accumulation_steps
        self.loader = _loader(rows, self.sampler, task, settings, pin=pin)

    @property
    def micro_batches(self) -> int:
        """In an epoch."""
        return len(self.sampler)

    def places(self, step: int) -> list[str]:
        """Where the rows of an optimizer step come from."""
        find = getattr(self.rows, "places", None)
        if find is None:
            return []
        epoch, within = divmod(step - 1, math.ceil(len(self.sampler) / self.accumulation))
        size = self.sampler.deal.global_rows * self.accumulation
        rows = self.sampler.order(epoch)[within * size : (within + 1) * size]
        return [place for row in rows for place in find(row)]

    def epoch(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch, without loading the first `start`."""
        self.sampler.epoch, self.sampler.start = epoch, start
        for micro, batch in enumerate(self.loader, start):
            yield MicroBatch(batch, self.sampler.idle(micro))


class _StreamedBatches(IterableDataset[MicroBatch | PeftcliError]):
    """One epoch of a stream, dealt and collated; picklable, so that a worker process can read ahead."""

    def __init__(self, rows: StreamRows, task: Task, deal: Deal, *, drop_last: bool) -> None:
        self.rows, self.task, self.deal, self.drop_last = rows, task, deal, drop_last
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[MicroBatch | PeftcliError]:
        # An error that a user can mend is handed over as a value: raised in a worker, it would come with a traceback
        # in its text.
        try:
            yield from self._batches()
        except PeftcliError as error:
            yield error

    def _batches(self) -> Iterator[MicroBatch]:
        rows = iter(self.rows.rows(self.epoch))
        size = self.deal.global_rows
        skipped = sum(1 for _ in islice(rows, self.start * size))
        if skipped < self.start * size:
            return
        while batch := list(islice(rows, size)):
            if len(batch) < size and self.drop_last:
                return
            mine = self.deal.mine(batch)
            yield MicroBatch(self.task.collate(mine or batch[:1]), idle=not mine)


class StreamFeed:
    """Rows read as they are needed; every process reads the stream and keeps its share."""

    micro_batches = None

    def places(self, step: int) -> list[str]:  # noqa: ARG002  (a Feed's signature)
        """Nobody knows, once they have passed."""
        return []

    def __init__(self, rows: StreamRows, task: Task, settings: Training, deal: Deal, *, pin: bool) -> None:
        if settings.max_steps <= 0:
            raise RecipeError("a streamed data set has no known end; set training.max_steps")
        self.dataset = _StreamedBatches(rows, task, deal, drop_last=settings.dataloader_drop_last)
        self.loader: DataLoader[MicroBatch | PeftcliError] = DataLoader(
            self.dataset, batch_size=None, pin_memory=pin, **_worker_options(settings, persistent=False)
        )

    def epoch(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch; the rows of the first `start` are read and passed over."""
        self.dataset.epoch, self.dataset.start = epoch, start
        for batch in self.loader:
            if isinstance(batch, PeftcliError):
                raise batch
            yield batch


def train_feed(rows: MapRows | StreamRows, task: Task, settings: Training, deal: Deal, *, pin: bool) -> Feed:
    """The feed for rows of either kind.

    Raises:
        RecipeError: for settings that these rows cannot follow.
    """
    if isinstance(rows, StreamRows):
        return StreamFeed(rows, task, settings, deal, pin=pin)
    return MapFeed(rows, task, settings, deal, pin=pin)


def eval_batches(
    rows: MapRows, task: Task, settings: Training, *, processes: int, rank: int, pin: bool
) -> DataLoader[Any]:
    """This process's share of the evaluation rows: every row in exactly one process, once.

    Rows of like length share a batch (little padding), the longest first (memory that does not suffice shows
    at once).
    """
    numbers = list(range(len(rows)))
    lengths = _lengths(rows)
    if lengths is not None:
        numbers.sort(key=lambda row: -lengths[row])
    size = settings.per_device_eval_batch_size
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return _loader(rows, batches[rank::processes], task, settings, pin=pin)


def pins_memory(settings: Training, device: torch.device) -> bool:
    """Whether batches are page-locked: only copies to a GPU gain by it."""
    return settings.dataloader_pin_memory and device.type == "cuda"


def windows(batches: Iterator[MicroBatch], size: int) -> Iterator[tuple[list[MicroBatch], bool]]:
    """The micro-batches of one optimizer step after another, each with whether it is the epoch's last.

    The last one of an epoch may hold fewer than `size`. One micro-batch is read ahead, since only that tells
    the end of a stream.
    """
    ahead = next(batches, None)
    while ahead is not None:
        window = [ahead, *islice(batches, size - 1)]
        ahead = next(batches, None) if len(window) == size else None
        yield window, ahead is None


def steps_in_epoch(feed: Feed, settings: Training) -> int | None:
    """Optimizer steps of an epoch, the incomplete last one included; None for streams."""
    if feed.micro_batches is None:
        return None
    return math.ceil(feed.micro_batches / settings.gradient_accumulation_steps)


def _lengths(rows: MapRows | StreamRows) -> Sequence[int] | None:
    lengths: Sequence[int] | None = getattr(rows, "lengths", None)
    return lengths


def _loader(rows: MapRows, batches: Any, task: Task, settings: Training, *, pin: bool) -> DataLoader[Any]:
    options = _worker_options(settings, persistent=settings.dataloader_persistent_workers)
    dataset: Any = rows  # DataLoader's type asks for a Dataset; what it uses is __getitem__ alone
    return DataLoader(dataset, batch_sampler=batches, collate_fn=task.collate, pin_memory=pin, **options)


def _worker_options(settings: Training, *, persistent: bool) -> dict[str, Any]:
    """DataLoader's keyword arguments about worker processes.

    Its own generator keeps it from drawing a seed out of PyTorch's global one at the start of every epoch,
    which would change the dropout of a resumed run.
    """
    return {
        "num_workers": settings.dataloader_num_workers,
        "persistent_workers": persistent,
        "prefetch_factor": settings.dataloader_prefetch_factor,
        "multiprocessing_context": settings.dataloader_multiprocessing_context,
        "generator": torch.Generator().manual_seed(settings.seed),
    }
