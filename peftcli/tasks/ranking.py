"""How well embeddings find the text that belongs to a text. Shapes: N rows, C distinct positives, H width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from peftcli.tasks.measures import measure

AT = (1, 5, 10)
# TorchMetrics takes what has a score of 0 or less for not found, and cosines go down to -1.
_RAISED, _LEFT_OUT = 2.0, 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """An evaluated row: its texts, as bytes that tell them apart, and their vectors of length 1, (H,) float32."""

    anchor: bytes
    positive: bytes
    anchor_vector: NDArray[np.float32]
    positive_vector: NDArray[np.float32]


def rank(rows: Sequence[Ranked]) -> dict[str, float]:
    """TorchMetrics' recall at k and mean reciprocal rank of each anchor's positive among those of all rows.

    A text that is the positive of several rows is one candidate. Other positives of the same anchor, and its own text,
    are no wrong answers: they are left out of its ranking.
    """
    functional = measure("torchmetrics.functional.retrieval")
    number: dict[bytes, int] = {}
    vectors: list[Any] = []
    known: dict[bytes, set[int]] = {}
    for row in rows:
        if row.positive not in number:
            number[row.positive] = len(vectors)
            vectors.append(row.positive_vector)
        known.setdefault(row.anchor, set()).add(number[row.positive])
    candidates = torch.as_tensor(np.stack(vectors)).double()
    totals = dict.fromkeys([*(f"recall_at_{k}" for k in AT), "mrr"], 0.0)
    for row in rows:
        right = number[row.positive]
        out = (known[row.anchor] | {number.get(row.anchor, right)}) - {right}
        scores = candidates @ torch.as_tensor(row.anchor_vector).double() + _RAISED
        scores[sorted(out)] = _LEFT_OUT
        target = torch.arange(len(candidates)) == right
        for k in AT:
            totals[f"recall_at_{k}"] += float(functional.retrieval_recall(scores, target, top_k=k))
        totals["mrr"] += float(functional.retrieval_reciprocal_rank(scores, target))
    return {name: total / len(rows) for name, total in totals.items()}
