"""What is written for a person: on standard error, with nothing in it that could steer the terminal."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterable

# Marks that reorder the text around them; scripts that run right to left need none of these to be shown well.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` on one line; control characters, lone surrogates and reordering marks become escapes."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def say(*lines: str) -> None:
    """Writes each line to standard error, made printable."""
    for line in lines:
        print(printable(line), file=sys.stderr, flush=True)


def say_errors(lines: Iterable[str]) -> None:
    """Writes `error: …` for each line to standard error."""
    say(*(f"error: {line}" for line in lines))


def use_utf8() -> None:
    """Makes the standard streams carry any script: results are UTF-8, whatever the locale says."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(
                encoding=encoding, errors="strict" if stream is sys.stdin else "backslashreplace"
            )
