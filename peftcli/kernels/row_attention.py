"""Causal attention of rows that stand one behind another, each to itself, beside its plain reference.

Notable: nothing is computed for padding, since there is none, nor for a mask of all tokens by all; heads that share
keys and values read them where they are, not copies of them.

Shape suffixes: H heads of queries, K heads of keys and values (K divides H), T tokens of all rows, t those of one,
D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def reference(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    bounds: Sequence[int],
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """The same with one mask of all tokens by all: what `attend` must equal, but for its dropout.

    Args:
        q_HTD: the queries.
        k_KTD: the keys.
        v_KTD: the values.
        bounds: where rows begin, from 0, and T.
        scaling: of the products; default: D ** -0.5.
        window: how many tokens, itself among them, a token sees at most.

    Returns:
        (T, H, D).
    """
    places = torch.arange(bounds[-1], device=q_HTD.device)
    row = torch.bucketize(places, torch.tensor(bounds[1:], device=q_HTD.device), right=True)
    behind = places[:, None] - places
    mask_TT = (row[:, None] == row) & (behind >= 0) & (behind < (window or bounds[-1]))
    groups = len(q_HTD) // len(k_KTD)
    k_HTD, v_HTD = k_KTD.repeat_interleave(groups, 0), v_KTD.repeat_interleave(groups, 0)
    return F.scaled_dot_product_attention(q_HTD, k_HTD, v_HTD, mask_TT, scale=scaling).transpose(0, 1)


def attend(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    bounds: Sequence[int],
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """The same, row by row; `dropout` is the share of attention that is dropped."""
    heads, groups = len(k_KTD), len(q_HTD) // len(k_KTD)
    lengths = [end - start for start, end in pairwise(bounds)]
    # Split, not sliced: each slice's gradient would be as large as that of all rows.
    q_KGtD = torch.split(q_HTD.view(heads, groups, *q_HTD.shape[1:]), lengths, dim=2)
    k_K1tD, v_K1tD = (torch.split(each.unsqueeze(1), lengths, dim=2) for each in (k_KTD, v_KTD))
    rows = []
    for q, k, v, length in zip(q_KGtD, k_K1tD, v_K1tD, lengths, strict=True):
        mask = None if window is None or length <= window else _band(length, window, q.device)
        k_KGtD, v_KGtD = (each.expand(-1, groups, -1, -1) for each in (k, v))
        o_KGtD = F.scaled_dot_product_attention(
            q, k_KGtD, v_KGtD, mask, dropout, is_causal=mask is None, scale=scaling
        )
        rows.append(o_KGtD.flatten(0, 1).transpose(0, 1))
    return torch.cat(rows)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    places = torch.arange(length, device=device)
    behind = places[:, None] - places
    return (behind >= 0) & (behind < window)
