"""Streamed text: the pieces are whole characters, and together exactly what the tokens decode to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from peftcli.run.stream import Stream, finished_length, visible, whole_characters

TEXTS = {
    "arabic": "مرحبا بالعالم، كيف حالك؟",
    "vowelled arabic": "بِسْمِ ٱللَّهِ",
    "joined emoji": "a👩‍👩‍👧‍👦b👩🏽‍🚀",
    "flags": "🇫🇷🇯🇵🇧🇷.",
    "combining marks": "e\u0301a\u0308\u0323 x",
    "devanagari": "नमस्ते दुनिया",
    "chinese": "你好，世界",
    "hangul parts": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "lines": "one\ntwo\n\nthree ",
    "a tag of england": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
}


def pieces(tokenizer: object, ids: list[int]) -> list[str]:
    got: list[str] = []
    stream = Stream(tokenizer, got.append)
    stream.put(torch.tensor([[0, 1, 2]]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    return got


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> object:
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_script_arrives_unharmed_and_no_piece_splits_a_character(tokenizer, text: str) -> None:
    got = pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(got) == text
    assert len(got) > 1 or text == TEXTS["a tag of england"]
    for before, after in pairwise(got):
        # A piece that began with a mark would belong to the character before it.
        assert finished_length(before + after[0]) == len(before) or before[-1].isspace()


def test_a_line_is_shown_when_it_is_whole(tokenizer) -> None:
    got: list[str] = []
    stream = Stream(tokenizer, got.append)
    stream.put(torch.tensor([[0]]))
    for token in tokenizer("one\n")["input_ids"]:
        stream.put(torch.tensor([token]))
    assert "".join(got) == "one\n"


@given(ids=st.lists(st.integers(0, 258), max_size=40))
def test_any_bytes_together_are_what_the_tokens_decode_to(tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(tokenizer, ids)) == whole_characters(
        tokenizer.decode(ids, skip_special_tokens=True)
    )


def test_a_character_that_was_cut_is_not_shown(tokenizer) -> None:
    ids = tokenizer("سلام 👩", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids[:-1])) == "سلام "


def test_control_characters_are_written_out_and_the_rest_is_left() -> None:
    assert (
        visible("\x1b[31mred\x07\r\x9b\x7f\n\tسلام 👩‍🚀") == "\\x1b[31mred\\x07\\x0d\\x9b\\x7f\n\tسلام 👩‍🚀"
    )
