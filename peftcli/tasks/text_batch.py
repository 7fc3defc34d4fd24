"""Rows of an encoder's tokens: encoded in batches, cut without losing special tokens, padded on the right.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peftcli.data.example import Row
from peftcli.errors import ModelError
from peftcli.tasks.unwrapped import unwrapped

# What a tokenizer gives beside input_ids that a model must have; a mask follows from the rows' lengths.
_COLUMNS = ("input_ids", "token_type_ids")


def encode_texts(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
    """One row a text (or pair of texts), whole, with the special tokens that the model wants."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=False,
        return_attention_mask=False,
        verbose=False,
    )
    return token_rows(encoded, len(texts))


def token_rows(encoded: Any, count: int) -> list[Row]:
    """What a tokenizer gave for a number of texts, a row each."""
    columns = [name for name in _COLUMNS if name in encoded]
    return [{name: np.asarray(encoded[name][at], dtype=np.int32) for name in columns} for at in range(count)]


def largest_token(rows: Sequence[Row]) -> int:
    """The largest number of a token; -1 where there is none."""
    return max((int(row["input_ids"].max(initial=-1)) for row in rows), default=-1)


def check_vocabulary(model: nn.Module, largest: int) -> None:
    """Refuses a base with fewer embeddings than the tokenizer gives numbers.

    Raises:
        ModelError: always then.
    """
    base: Any = unwrapped(model)
    size = base.get_input_embeddings().num_embeddings
    if largest >= size:
        raise ModelError(
            f"the tokenizer gives token {largest}, and the base knows {size}: they do not belong together"
        )


def added_ids(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts around texts: its special ones, but for the one that stands for a text's own."""
    return [token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id]


def cut_texts(row: Row, limit: int, added: Sequence[int]) -> Row:
    """The row with tokens left out from the end of its longest text until it has `limit`, as tokenizers cut pairs.

    Args:
        row: of one text or two.
        limit: how many tokens stay.
        added: the tokens around texts, as `added_ids` gives them, which stay.
    """
    ids = row["input_ids"]
    keep = np.ones(len(ids), dtype=bool)
    texts = _runs(~np.isin(ids, np.asarray(added)))
    lengths = [len(text) for text in texts]
    for _ in range(len(ids) - limit):
        # Of two that have come to the same length, the one that was longer keeps a token more.
        longest = max(range(len(texts)), key=lambda at: (len(texts[at]), -lengths[at]), default=None)
        if longest is None or not texts[longest]:
            break
        keep[texts[longest].pop()] = False
    return keep_tokens(row, keep)


def keep_tokens(row: Row, keep: NDArray[Any]) -> Row:
    """The row with some of its tokens, which a mask or their places say."""
    return {name: value[keep] if name in _COLUMNS else value for name, value in row.items()}


def _runs(is_text: Any) -> list[list[int]]:
    """The places of each text, in order."""
    places = np.flatnonzero(is_text)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [part.tolist() for part in parts]


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


def text_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a batch a model reads."""
    return {name: batch[name] for name in (*_COLUMNS, "attention_mask") if name in batch}
