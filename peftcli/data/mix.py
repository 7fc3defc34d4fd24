"""Which rows make an epoch: sources mixed by weight, and the part that is kept for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_for_eval(examples: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Row indices for training and for evaluation.

    Args:
        examples: (rows,) which example each row came from, two at least: its rows stay together.
        fraction: Share of the examples that goes to evaluation; at least one, and one is left to train on.
        seed: Decides which.
    """
    unique = np.unique(examples)
    assert len(unique) >= 2, "one example cannot be split"
    wanted = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    chosen = np.random.default_rng(seed).permutation(unique)[:wanted]
    in_eval = np.isin(examples, chosen)
    return np.flatnonzero(~in_eval), np.flatnonzero(in_eval)


def weighted(groups: Sequence[Indices], weights: Sequence[float], seed: int) -> Indices:
    """The rows of one epoch: of each source every row `int(weight)` times, and a fixed random part once more.

    A weight of 1.0 gives every row once, 0.5 half of them, 2.0 each twice, 1.5 all once and half of them
    again.
    """
    chosen = []
    for number, (rows, weight) in enumerate(zip(groups, weights, strict=True)):
        whole, part = int(weight), weight - int(weight)
        chosen += [rows] * whole
        count = round(part * len(rows))
        # A weight that rounds to no row at all would leave the source out without a word.
        if not whole and len(rows):
            count = max(1, count)
        picked = np.random.default_rng([seed, number]).permutation(len(rows))[:count]
        chosen.append(rows[np.sort(picked)])
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
