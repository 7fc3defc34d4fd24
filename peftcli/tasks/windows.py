"""Windows on long contexts: a question and one part after another of the text that may answer it.

A question and its whole context are encoded once, as a pair; each window has all of it but the context's other tokens.
These are the windows that tokenizers give with `stride`, and none has more tokens than the model can read. Shapes:
N tokens of the whole context, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Row
from peftcli.errors import DataError
from peftcli.tasks.text_batch import keep_tokens, token_rows

Ints = NDArray[np.int32]
OUTSIDE = -1
_QUESTION, _CONTEXT = 0, 1  # the first and the second text of a pair
# Of characters up to this one all that are white space.
_SPACES = np.asarray([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A question and its context as tokens.

    Attributes:
        row: all tokens.
        first: where the context's begin.
        starts: for each of the context's tokens its first character that can be seen, (N,); -1 where it has none.
        ends: the place after its last such character, (N,).
        added: whether a token is a special one around the texts.
    """

    row: Row
    first: int
    starts: Ints
    ends: Ints
    added: NDArray[np.bool_]

    @property
    def around(self) -> int:
        """How many tokens are not the context's: every window has them."""
        return len(self.added) - len(self.starts)

    def ranges(self, room: int, shared: int) -> list[tuple[int, int]]:
        """Which of the context's tokens each window has.

        Args:
            room: how many a window has of them, at most.
            shared: how many it shares with the window before; fewer than `room`.
        """
        count = len(self.starts)
        step = room - shared
        begins = range(0, max(count - room, 0) + step, step)
        return [(begin, min(begin + room, count)) for begin in begins]

    def window(self, begin: int, end: int) -> Row:
        """A row of T tokens: `starts` and `ends` (T,), -1 outside of the context."""
        at = np.arange(len(self.added)) - self.first
        keep = (at < 0) | (at >= len(self.starts)) | ((at >= begin) & (at < end))
        row = keep_tokens(self.row, keep)
        own = slice(self.first, self.first + end - begin)
        for name, places in (("starts", self.starts), ("ends", self.ends)):
            row[name] = np.full(len(row["input_ids"]), OUTSIDE, dtype=np.int32)
            row[name][own] = places[begin:end]
        return row

    def place(self, token: int, begin: int, end: int) -> int:
        """Where a window has a token that is not the context's."""
        return token if token < self.first else token - len(self.starts) + end - begin

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """The context's first and last token that hold one of these characters; None where none does."""
        found = np.flatnonzero((self.starts != OUTSIDE) & (self.starts < end) & (self.ends > start))
        return (int(found[0]), int(found[-1])) if len(found) else None


def encode_pairs(tokenizer: Any, questions: Sequence[str], contexts: Sequence[str]) -> list[PairTokens]:
    """The tokens of each question with its context, whole.

    Args:
        tokenizer: one that knows offsets.
        questions: they stand first.
        contexts: one for each.

    Raises:
        DataError: one that has no token.
    """
    if not questions:
        return []
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = token_rows(encoded, len(questions))
    return [
        _pair(row, encoded.sequence_ids(at), encoded["offset_mapping"][at], contexts[at])
        for at, row in enumerate(rows)
    ]


def _pair(row: Row, texts: Sequence[int | None], offsets: Any, context: str) -> PairTokens:
    for text, name in ((_QUESTION, "question"), (_CONTEXT, "context")):
        if text not in texts:
            raise DataError(f"the {name} has no token: the tokenizer drops all of its characters")
    (own,) = np.nonzero([text == _CONTEXT for text in texts])
    starts, ends = _seen(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[own], context)
    return PairTokens(row, int(own[0]), starts, ends, np.asarray([text is None for text in texts]))


def _seen(offsets: NDArray[np.int64], context: str) -> tuple[Ints, Ints]:
    """Offsets without the white space that some tokenizers have in them."""
    codes = np.frombuffer(context.encode("utf-32-le"), dtype=np.uint32)
    places = np.flatnonzero(~np.isin(codes, _SPACES))
    if not len(places):
        none = np.full(len(offsets), OUTSIDE, dtype=np.int32)
        return none, none
    first = np.searchsorted(places, offsets[:, 0])
    last = np.searchsorted(places, offsets[:, 1]) - 1
    blank = first > last
    starts = places[np.minimum(first, len(places) - 1)]
    ends = places[np.maximum(last, 0)] + 1
    return (
        np.where(blank, OUTSIDE, starts).astype(np.int32),
        np.where(blank, OUTSIDE, ends).astype(np.int32),
    )
