"""Which rows are in which batch, of which process."""

import random
from itertools import chain

import pytest
import torch

from peftcli.train.feed import MicroBatch, eval_batches, windows
from peftcli.train.sampler import Deal, DealtBatches, length_grouped, row_order
from tests.train.tiny import NextToken, rows, settings


def batches(count, deal, *, epoch=0, start=0, drop_last=False, kind="random"):
    lengths = [random.Random(row).randrange(1, 50) for row in range(count)]
    order = row_order(kind, count, lengths, 8, 7)
    return list(DealtBatches(order, count, deal, drop_last, epoch, start))


@pytest.mark.parametrize("kind", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize("count", [16, 19, 24])
def test_processes_together_see_the_batches_of_one(kind, count):
    alone = batches(count, Deal(8), kind=kind)
    two = [batches(count, Deal(4, 2, rank), kind=kind) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize("kind", ["random", "sequential", "group_by_length"])
def test_an_epoch_has_every_row_once(kind):
    assert sorted(chain.from_iterable(batches(19, Deal(4), kind=kind))) == list(range(19))


def test_epochs_have_orders_of_their_own_that_only_the_seed_decides():
    assert batches(19, Deal(4)) == batches(19, Deal(4))
    assert batches(19, Deal(4)) != batches(19, Deal(4), epoch=1)


def test_an_epoch_can_start_anywhere():
    assert batches(19, Deal(4), start=2) == batches(19, Deal(4))[2:]


def test_the_last_incomplete_batch_can_be_dropped():
    assert [len(batch) for batch in batches(19, Deal(4), drop_last=True)] == [4, 4, 4, 4]


def test_a_process_without_a_row_of_its_own_is_idle_with_another_row():
    order = row_order("sequential", 9, None, 8, 0)
    shares = [DealtBatches(order, 9, Deal(4, 2, rank)) for rank in range(2)]
    assert [list(share)[-1] for share in shares] == [[8], [8]]
    assert [[share.idle(micro) for micro in range(2)] for share in shares] == [[False, False], [False, True]]


def test_grouping_puts_like_lengths_together_and_the_longest_batch_first():
    draw = random.Random(3)
    lengths = [draw.randrange(1, 1000) for _ in range(403)]
    order = length_grouped(lengths, 8, torch.Generator().manual_seed(0))
    groups = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 403, 8)]

    def padding(parts):
        return sum(max(part) * len(part) - sum(part) for part in parts)

    assert sorted(order) == list(range(403))
    assert max(lengths) in groups[0]
    assert len(groups[-1]) == 3
    assert padding(groups) < padding([lengths[start : start + 8] for start in range(0, 403, 8)]) / 5
    firsts = [max(group) for group in groups]
    assert firsts != sorted(firsts, reverse=True)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_rows_are_each_in_one_process(processes):
    data = rows(10)
    given = settings(per_device_eval_batch_size=3)
    found = []
    for rank in range(processes):
        loader = eval_batches(data, NextToken(), given, processes=processes, rank=rank, pin=False)
        for batch in loader:
            pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
            found += [ids[:length] for ids, length in pairs]
    assert sorted(found) == sorted(row["input_ids"] for row in data)


def test_windows_know_the_last_one():
    def of(count):
        made = iter([MicroBatch({}) for _ in range(count)])
        return [(len(window), last) for window, last in windows(made, 3)]

    assert of(0) == []
    assert of(2) == [(2, True)]
    assert of(3) == [(3, True)]
    assert of(7) == [(3, False), (3, False), (1, True)]
