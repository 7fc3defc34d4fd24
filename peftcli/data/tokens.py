"""Text to tokens, so that a prompt has the same tokens in training as at inference.

The law of this file: the tokens of a training row start with the tokens of its prompt alone. A tokenizer
may merge characters over the boundary (a prompt that ends in a space before a completion that starts with a
letter); then the row is cut there: the prompt has its own tokens, and the completion's first token holds
characters of the completion alone. Everywhere else a token belongs to a trained span where it holds at
least one character of it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from peftcli.errors import ModelError

Span = tuple[int, int]

_START, _END = itemgetter(0), itemgetter(1)

IGNORED = -100  # PyTorch's ignore_index: a label that is not trained


@dataclass(slots=True)
class Passage:
    """A text to encode: its last answer starts at `boundary`; `spans` are its trained characters."""

    text: str
    boundary: int = 0
    spans: list[Span] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    """Tokens that stand before the text's own, never trained."""
    rewritten: int = 0
    """Assistant turns of which the chat template has left something out."""


@dataclass(slots=True)
class Encoded:
    """Tokens and, for each, whether it is trained."""

    input_ids: list[int]
    trained: list[bool]


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot say which characters a token stands for.

    Raises:
        ModelError: for a tokenizer that is not one of the `tokenizers` library ("fast").
    """
    if not tokenizer.is_fast:
        name = type(tokenizer).__name__
        raise ModelError(
            f"the tokenizer {name} has no offsets; use a base whose repository has a tokenizer.json"
        )


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, with no special token added."""
    if not texts:
        return []
    ids: list[list[int]] = _tokenize(tokenizer, texts, offsets=False)["input_ids"]
    return ids


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before plain text: `<s>`, or none."""
    bare = token_ids(tokenizer, ["a"])[0]
    full: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    count = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
    return full[:count]


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """All that texts' tokens depend on, of a tokenizer that has offsets."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # These change with what was tokenized last; rows are neither cut nor padded.
    content.pop("truncation", None)
    content.pop("padding", None)
    return {
        "class": type(tokenizer).__name__,
        "content": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


def encode_passages(tokenizer: Any, passages: Sequence[Passage]) -> list[Encoded]:
    """The tokens of each passage and which of them are trained."""
    if not passages:
        return []
    whole = _tokenize(tokenizer, [passage.text for passage in passages], offsets=True)
    prompts = token_ids(tokenizer, [passage.text[: passage.boundary] for passage in passages])
    encoded = [
        Encoded(ids, _trained(offsets, passage.spans)) if ids[: len(prompt)] == prompt else None
        for passage, ids, offsets, prompt in zip(
            passages, whole["input_ids"], whole["offset_mapping"], prompts, strict=True
        )
    ]
    merged = [passage for passage, row in zip(passages, encoded, strict=True) if row is None]
    cut = iter(_encode_cut(tokenizer, merged))
    return [_begun(passage, row or next(cut)) for passage, row in zip(passages, encoded, strict=True)]


def _begun(passage: Passage, row: Encoded) -> Encoded:
    return Encoded([*passage.begin, *row.input_ids], [False] * len(passage.begin) + row.trained)


def _encode_cut(tokenizer: Any, passages: Sequence[Passage]) -> list[Encoded]:
    """Passages whose prompt merges with what follows: prompt and answer have tokens of their own."""
    if not passages:
        return []
    answers = [passage.text[passage.boundary :] for passage in passages]
    before = _tokenize(tokenizer, [passage.text[: passage.boundary] for passage in passages], offsets=True)
    # Some tokenizers put a space before any text; after a line feed, which is taken away again, they do not.
    anchor = token_ids(tokenizer, ["\n"])[0]
    after = _tokenize(tokenizer, ["\n" + answer for answer in answers], offsets=True)
    anchored = [ids[: len(anchor)] == anchor for ids in after["input_ids"]]
    bare = _tokenize(tokenizer, answers, offsets=True) if not all(anchored) else after
    rows = []
    for at, passage in enumerate(passages):
        skip, shift = (len(anchor), passage.boundary - 1) if anchored[at] else (0, passage.boundary)
        answer = after if anchored[at] else bare
        offsets = before["offset_mapping"][at] + [
            (start + shift, end + shift) for start, end in answer["offset_mapping"][at][skip:]
        ]
        ids = before["input_ids"][at] + answer["input_ids"][at][skip:]
        rows.append(Encoded(ids, _trained(offsets, passage.spans)))
    return rows


def _trained(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token holds a character of a span; both are in order."""
    flags = [False] * len(offsets)
    for begin, end in spans:
        first = bisect_right(offsets, begin, key=_END)
        last = bisect_left(offsets, end, lo=first, key=_START)
        # Some tokenizers trim spaces from offsets: a token of spaces alone is then empty, at its end.
        while last < len(offsets) and offsets[last] == (end, end):
            last += 1
        flags[first:last] = [True] * (last - first)
    return flags


def _tokenize(tokenizer: Any, texts: Sequence[str], *, offsets: bool) -> Any:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=offsets,
        # Rows longer than the model are counted and reported here; the tokenizer need not warn too.
        verbose=False,
    )
