"""Words and the pieces that a tokenizer cuts their text into.

The words are joined by spaces and encoded as a text like any other, and offsets tell which word a piece belongs to. So
every tokenizer cuts them as it cuts running text: those of bytes, too, which put a space into the piece of the word
after it. Shapes: T pieces, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Row
from peftcli.tasks.text_batch import token_rows

NO_WORD = -1


def encode_words(tokenizer: Any, texts: Sequence[Sequence[str]]) -> list[Row]:
    """One row a text; `words` (T,) is the word of each piece, -1 for special tokens and spaces.

    Words without a character that can be seen have no piece, nor do those that the tokenizer drops.

    Args:
        tokenizer: one that knows offsets.
        texts: the words of each.
    """
    if not texts:
        return []
    joined = [_joined(words) for words in texts]
    encoded = tokenizer(
        [text for text, _, _ in joined],
        truncation=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = token_rows(encoded, len(texts))
    for row, offsets, (_, spans, numbers) in zip(rows, encoded["offset_mapping"], joined, strict=True):
        row["words"] = _words_of(np.asarray(offsets, dtype=np.int64).reshape(-1, 2), spans, numbers)
    return rows


def first_pieces(words: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The words that have a piece, and where the first one of each stands."""
    numbers, places = np.unique(words, return_index=True)
    return numbers[numbers != NO_WORD], places[numbers != NO_WORD]


def _joined(words: Sequence[str]) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """The text, the words in it as (start, end), and their numbers."""
    seen = [at for at, word in enumerate(words) if word.strip()]
    ends = np.cumsum([len(words[at]) + 1 for at in seen], dtype=np.int64) - 1
    starts = ends - [len(words[at]) for at in seen]
    return (
        " ".join(words[at] for at in seen),
        np.stack([starts, ends], axis=1),
        np.asarray(seen, dtype=np.int32),
    )


def _words_of(offsets: NDArray[Any], spans: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.int32]:
    """The number of the first word of which each piece holds a character."""
    if not len(numbers):
        return np.full(len(offsets), NO_WORD, dtype=np.int32)
    starts, ends = offsets[:, 0], offsets[:, 1]
    # The first word that ends after the piece's start.
    at = np.searchsorted(spans[:, 1], starts, side="right")
    within = np.minimum(at, len(numbers) - 1)
    holds = (at < len(numbers)) & (starts < ends) & (spans[within, 0] < ends)
    return np.where(holds, numbers[within], np.int32(NO_WORD))
