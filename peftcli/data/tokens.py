"""Text to tokens, so that a prompt has the same tokens in training as at inference.

The law of this file: the tokens of a training row start with the tokens of its prompt alone. A tokenizer
may merge characters over the boundary (a prompt that ends in a space before a completion that starts with a
letter); then the row is cut there: the prompt has its own tokens, and the completion's first token holds
characters of the completion alone. Everywhere else a token belongs to a trained span where it holds at
least one character of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peftcli.errors import ModelError

Span = tuple[int, int]

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


def encode_passages(tokenizer: Any, passages: Sequence[Passage]) -> list[Encoded]:
    """The tokens of each passage and which of them are trained."""
    if not passages:
        return []
    whole = _tokenize(tokenizer, [passage.text for passage in passages], offsets=True)
    prompts = token_ids(tokenizer, [passage.text[: passage.boundary] for passage in passages])
    encoded = []
    for passage, ids, offsets, prompt in zip(
        passages, whole["input_ids"], whole["offset_mapping"], prompts, strict=True
    ):
        if ids[: len(prompt)] == prompt:
            row = Encoded(ids, _trained(offsets, passage.spans))
        else:
            row = _encode_cut(tokenizer, passage)
        count = len(passage.begin)
        row = Encoded([*passage.begin, *row.input_ids], [False] * count + row.trained)
        encoded.append(row)
    return encoded


def _encode_cut(tokenizer: Any, passage: Passage) -> Encoded:
    prompt, answer = passage.text[: passage.boundary], passage.text[passage.boundary :]
    before = _tokenize(tokenizer, [prompt], offsets=True)
    # Some tokenizers put a space before any text; after a line feed, which is taken away again, they do not.
    anchor = token_ids(tokenizer, ["\n"])[0]
    after = _tokenize(tokenizer, ["\n" + answer], offsets=True)
    skip, shift = len(anchor), passage.boundary - 1
    if after["input_ids"][0][:skip] != anchor:
        after = _tokenize(tokenizer, [answer], offsets=True)
        skip, shift = 0, passage.boundary
    offsets = before["offset_mapping"][0] + [
        (start + shift, end + shift) for start, end in after["offset_mapping"][0][skip:]
    ]
    return Encoded(before["input_ids"][0] + after["input_ids"][0][skip:], _trained(offsets, passage.spans))


def _trained(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token holds a character of a span; both are in order, so one walk suffices."""
    flags = []
    at = 0
    for start, end in offsets:
        while at < len(spans) and spans[at][1] <= start and spans[at][1] < end:
            at += 1
        # Some tokenizers trim spaces from offsets: a token of spaces alone is then empty, at its end.
        flags.append(
            at < len(spans) and spans[at][0] < end and (start < spans[at][1] or start == end == spans[at][1])
        )
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
