"""What is written for a person: on standard error, with nothing in it that could steer the terminal."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

# Marks that reorder the text around them; scripts that run right to left need none of these to be shown well.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_STEERING = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


def answer(text: str, *, end: str = "\n") -> None:
    """Writes text to standard output: as it is into a file or a pipe, made harmless on a terminal."""
    from peftcli.run.stream import visible

    sys.stdout.write((visible(text) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def answer_json(value: Any, *, indent: int | None = 2) -> None:
    """Writes a value to standard output, as JSON that no script is escaped in and no terminal is steered by."""
    sys.stdout.write(inert_json(json.dumps(value, ensure_ascii=False, indent=indent)) + "\n")


def inert_json(text: str) -> str:
    """The same JSON with the characters that steer a terminal as escapes; JSON itself escapes those below 32."""
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def use_utf8() -> None:
    """Makes the standard streams carry any script: results are UTF-8, whatever the locale says."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(
                encoding=encoding, errors="strict" if stream is sys.stdin else "backslashreplace"
            )
