"""What a format makes of a row: the text to learn from, before any tokenizer has seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: every token is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt as it is, and what follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction and its answer: a chat of one turn where there is a chat template, else plain text."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages in order, with `role` and `content`; other strings in them are for the template to use."""

    messages: list[dict[str, str]]


Example = Text | Completion | Instruction | Chat

# An encoded row: for language models {"input_ids": …, "labels": the same length, -100 = not trained}.
Row = dict[str, Any]

# From examples to encoded rows, one list an example. Examples come in batches: tokenizers are fast on lists.
Encode = Callable[[Sequence[Example]], list[list[Row]]]
