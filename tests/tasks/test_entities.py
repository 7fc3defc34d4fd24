"""Entities are those that seqeval counts, in every scheme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from peftcli.tasks.entities import Entity, entities, inside, iobes, mark_entities


def tags_of(prefixes: str) -> st.SearchStrategy[list[str]]:
    names = [f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC", "x-y")]
    return st.lists(st.sampled_from(["O", *names]), max_size=12)


@given(tags_of("BIES"))
def test_any_tags_mark_what_seqeval_takes_them_to_mark(tags: list[str]) -> None:
    theirs = [Entity(kind, start, last + 1) for kind, start, last in get_entities(tags)]
    assert entities(tags) == theirs


@given(tags_of("BILU"))
def test_bilou_marks_what_its_twin_in_iobes_marks(tags: list[str]) -> None:
    assert entities(tags) == entities([iobes(tag) for tag in tags])


def test_each_scheme_marks_the_same_entities() -> None:
    found = [Entity("PER", 0, 2), Entity("LOC", 2, 3), Entity("LOC", 4, 7)]
    for tags in (
        ["B-PER", "I-PER", "B-LOC", "O", "B-LOC", "I-LOC", "I-LOC"],
        ["B-PER", "E-PER", "S-LOC", "O", "B-LOC", "I-LOC", "E-LOC"],
        ["B-PER", "L-PER", "U-LOC", "O", "B-LOC", "I-LOC", "L-LOC"],
        ["I-PER", "I-PER", "I-LOC", "O", "I-LOC", "I-LOC", "I-LOC"],
    ):
        assert entities(tags) == found


@pytest.mark.parametrize(
    ("names", "marks"),
    [
        (["B-PER", "I-PER", "O"], True),
        (["B-PER", "S-LOC"], True),
        (["NOUN", "VERB"], False),
        (["O", "PER"], False),
        (["B-", "O"], False),
        (["O"], False),
        ([], False),
    ],
)
def test_tags_mark_entities_where_all_have_a_beginning(names: list[str], marks: bool) -> None:
    assert mark_entities(names) is marks


def test_further_pieces_of_a_beginning_are_inside() -> None:
    assert [inside(tag) for tag in ("B-PER", "I-PER", "S-PER", "O", "BIG")] == [
        "I-PER",
        "I-PER",
        "S-PER",
        "O",
        "BIG",
    ]
