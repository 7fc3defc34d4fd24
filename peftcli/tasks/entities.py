"""Tags of words, and the entities that they mark.

A tag says where in an entity its word stands: B-LOC begins one, I-LOC goes on, E- or L- ends it, S- or U- is one of a
single word, and O is outside (IOB2, IOBES and BILOU; Ramshaw and Marcus, "Text Chunking using Transformation-Based
Learning", 1995, arXiv:cmp-lg/9505040). Tags that break these rules mark what CoNLL's evaluation takes them to mark: an
I-LOC after O begins an entity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

OUTSIDE = "O"
_TAG = re.compile(r"[BIESLU]-.+|O", re.DOTALL)
# seqeval reads IOBES: BILOU's ends and single words have other letters there.
_IOBES = {"L": "E", "U": "S"}


@dataclass(frozen=True, slots=True)
class Entity:
    """A run of words of one kind, from `start` up to, and without, `end`."""

    label: str
    start: int
    end: int


def mark_entities(names: Sequence[str]) -> bool:
    """Whether these tags mark entities: all are O or have such a beginning, and not all are O."""
    return bool({*names} - {OUTSIDE}) and all(map(_TAG.fullmatch, names))


def iobes(tag: str) -> str:
    """The same tag in IOBES, where it is BILOU's."""
    return _IOBES.get(tag[0], tag[0]) + tag[1:]


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that the tags of a text mark, in order."""
    found: list[Entity] = []
    start, before, kind = 0, OUTSIDE, ""
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, label = iobes(tag).partition("-")
        goes_on = prefix in {"I", "E"} and before in {"B", "I"} and label == kind
        if before != OUTSIDE and not goes_on:
            found.append(Entity(kind, start, at))
        if not goes_on:
            start = at
        before, kind = prefix, label
    return found


def inside(tag: str) -> str:
    """The tag of a word's further pieces: only its first piece begins an entity."""
    return f"I{tag[1:]}" if tag.startswith("B-") else tag
