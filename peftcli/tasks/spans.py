"""Spans: where in a context an answer begins and ends, as the logits of two heads say.

A span scores its start's logit and its end's; that the window has no answer scores the logits of one token that stands
for this (Devlin et al., "BERT", 2018, arXiv:1810.04805, section 4.3). Windows are compared by how much better their
best span is than no answer there: logits of different windows have no common zero. Shapes: B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Span:
    """A window's best span.

    Attributes:
        start: its first character.
        end: the place after its last.
        odds: the logarithm of how much likelier it is than that the window has no answer.
        score: its probability among all that the window's tokens can be.
        none_score: that of no answer.
    """

    start: int
    end: int
    odds: float
    score: float
    none_score: float


@dataclass(frozen=True, slots=True)
class Best:
    """Of B windows the best spans' tokens, first and last, and the figures of `Span`; each (B,), on the host."""

    first: list[int]
    last: list[int]
    odds: list[float]
    scores: list[float]
    none_scores: list[float]


def best_spans(start: Tensor, end: Tensor, candidates: Tensor, none: Tensor, longest: int) -> Best:
    """The likeliest of all spans of candidates.

    Args:
        start: logits (B, T); minus infinity for padding.
        end: the same.
        candidates: (B, T), the tokens that a span may begin and end with.
        none: (B,), the token that stands for no answer.
        longest: the most tokens of a span.
    """
    starts, ends = (logits.masked_fill(~candidates, -torch.inf) for logits in (start, end))
    longest = min(longest, end.shape[1])
    # For each start the best end among the tokens from there on.
    reached = F.pad(ends, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1).max(-1)
    best = (starts + reached.values).max(-1)
    length = reached.indices.gather(1, best.indices.unsqueeze(1)).squeeze(1)
    nothing = (start + end).gather(1, none.unsqueeze(1)).squeeze(1)
    total = start.logsumexp(-1) + end.logsumexp(-1)
    return Best(
        best.indices.tolist(),
        (best.indices + length).tolist(),
        (best.values - nothing).tolist(),
        (best.values - total).exp().tolist(),
        (nothing - total).exp().tolist(),
    )


def best_of(windows: Sequence[Span], *, none: bool) -> Span | None:
    """Of one context's windows the best one's span; None where no answer is likelier.

    Args:
        windows: one at least; some of the context's may be missing.
        none: whether there may be no answer. If not there is none only where no window has a token to answer with.
    """
    best = max(windows, key=lambda window: window.odds)
    if best.odds == -torch.inf or (none and best.odds < 0):
        return None
    return best
