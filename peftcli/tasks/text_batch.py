"""Rows of an encoder's tokens: encoded in batches, cut without losing special tokens, padded on the right.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftcli.data.example import Row

# What a tokenizer gives beside input_ids that a model must have; a mask follows from the rows' lengths.
_COLUMNS = ("input_ids", "token_type_ids")


def encode_texts(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
    """One row a text (or pair of texts), whole, with the special tokens that the model wants."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), None if pairs is None else list(pairs), truncation=False, verbose=False)
    columns = [name for name in _COLUMNS if name in encoded]
    return [
        {name: np.asarray(encoded[name][at], dtype=np.int32) for name in columns} for at in range(len(texts))
    ]


def cut_texts(row: Row, limit: int, special: Sequence[int]) -> Row:
    """The row with tokens left out from the end of its longest text until it has `limit`; special ones stay."""
    ids = row["input_ids"]
    keep = np.ones(len(ids), dtype=bool)
    is_text = ~np.isin(ids, np.asarray(special))
    for _ in range(len(ids) - limit):
        runs = _runs(is_text & keep, keep)
        if not runs:
            break
        keep[max(runs, key=len)[-1]] = False
    return {
        name: value[keep] if isinstance(value, np.ndarray) and len(value) == len(ids) else value
        for name, value in row.items()
    }


def _runs(is_text: Any, keep: Any) -> list[list[int]]:
    """The places of each text that still stand, in order."""
    runs: list[list[int]] = []
    inside = False
    for at in np.flatnonzero(keep):
        if is_text[at] and inside:
            runs[-1].append(int(at))
        elif is_text[at]:
            runs.append([int(at)])
        inside = bool(is_text[at])
    return runs


def pad_texts(rows: Sequence[Row], pad: int | None) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, where rows have them, `token_type_ids`: (B, T)."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.full((len(rows), longest), (pad or 0) if name == "input_ids" else 0)
        for name in _COLUMNS
        if name in rows[0]
    }
    batch["attention_mask"] = torch.zeros((len(rows), longest), dtype=torch.long)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        for name in _COLUMNS:
            if name in row:
                batch[name][at, :length] = torch.as_tensor(row[name])
        batch["attention_mask"][at, :length] = 1
    return batch
