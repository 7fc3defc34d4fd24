"""Text that appears as it is generated, in whole characters, whatever the script."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

# Scripts that run right to left need none of these to be shown well.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINER = "\u200d"
_REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


class Stream:
    """A streamer for Transformers' `generate`: decodes tokens and hands on text that can no longer change.

    A token may hold only some bytes of a character, or a character whose accent comes with the next token.
    So the last character is kept back, with all that belongs to it, until the next one begins.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._ids: list[int] = []
        self._written = 0
        self._in_prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt's ids (first call, shape (1, T)) or the next token's (shape (1,))."""
        if self._in_prompt:
            self._in_prompt = False
            return
        self._ids.extend(value.tolist())
        text = self._text()
        self._hand_on(text, finished_length(text))

    def end(self) -> None:
        """Hand on what was kept back."""
        text = whole_characters(self._text())
        self._hand_on(text, len(text))

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def _hand_on(self, text: str, until: int) -> None:
        if until > self._written:
            self._write(text[self._written : until])
            self._written = until


def whole_characters(text: str) -> str:
    """The text without a last character of which only some bytes were generated."""
    return text.rstrip(_REPLACEMENT)


def finished_length(text: str) -> int:
    """How much of a growing text can be shown: all but its last character and what is joined to that.

    White space ends what came before it, and is shown at once, so that lines appear when they are whole.
    """
    text = whole_characters(text)
    if not text or text[-1].isspace():
        return len(text)
    last = len(text) - 1
    while last > 0 and _joined(text[last - 1], text[last]):
        last -= 1
    return last


def visible(text: str) -> str:
    """The text with control characters and reordering marks written out: a model must not steer a terminal."""
    return "".join(
        (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
        if (unicodedata.category(char) == "Cc" and char not in "\n\t") or char in _REORDERING
        else char
        for char in text
    )


def _joined(before: str, char: str) -> bool:
    """Whether `char` belongs to the one before it: marks, joined emoji, skin tones, flags, Hangul's parts."""
    if _JOINER in (before, char) or unicodedata.category(char) in {"Mn", "Mc", "Me"}:
        return True
    if "\U0001f3fb" <= char <= "\U0001f3ff" or "\U000e0020" <= char <= "\U000e007f":
        return True
    if "\u1160" <= char <= "\u11ff":
        return True
    return _is_flag_half(before) and _is_flag_half(char)


def _is_flag_half(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"
