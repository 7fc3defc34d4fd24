"""Preparing data: what is trained, what is cut or dropped, how sources mix; every number is said."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcli.data.mix import split_for_eval, weighted
from peftcli.data.prepare import prepare
from peftcli.data.prompt import prompt_ids, prompt_text
from peftcli.data.tokens import IGNORED, beginning
from peftcli.errors import DataError, RecipeError
from peftcli.tasks.causal_lm import CausalLM
from tests.data.writers import (
    TEMPLATES,
    TEXTS,
    merging_tokenizer,
    prefixing_tokenizer,
    recipe_with,
    write_jsonl,
)


def ready(tokenizer=None, seed=0, model_max_length=None, order_seed=None, shuffle=True, **data):
    recipe = recipe_with(**data)
    task = CausalLM(recipe, tokenizer or merging_tokenizer())
    return prepare(
        recipe.data,
        encoder=task.encoder(),
        seed=seed,
        order_seed=order_seed,
        shuffle=shuffle,
        model_max_length=model_max_length,
    )


def texts_of(rows, tokenizer=None):
    tokenizer = tokenizer or merging_tokenizer()
    return [tokenizer.decode(rows[at]["input_ids"], skip_special_tokens=True) for at in range(len(rows))]


def trained_text(tokenizer, row):
    return tokenizer.decode(row["input_ids"][row["labels"] != IGNORED])


def numbered(tmp_path, count, name="a"):
    return str(write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{at}"} for at in range(count)]))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_trained_whole_and_ends(tmp_path, text):
    tokenizer = merging_tokenizer()
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}])
    row = ready(tokenizer, train={"path": str(path)}).train[0]
    assert trained_text(tokenizer, row) == text + "</s>"
    assert len(row["input_ids"]) == len(row["labels"])


COMPLETIONS = [
    ("what is it? ", "yes"),  # the space would merge with the word
    ("hello\n", "\nthere"),  # the line feeds would merge
    ("12", "24"),
    ("hello", " there"),
    ("", "yes"),
    ("a  ", "b"),
    *((text, text) for text in TEXTS),
]


@pytest.mark.parametrize(("prompt", "completion"), COMPLETIONS)
@pytest.mark.parametrize("make", [merging_tokenizer, prefixing_tokenizer])
def test_a_completion_is_trained_alone_after_the_tokens_of_its_prompt(tmp_path, make, prompt, completion):
    tokenizer = make()
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": completion}])
    row = ready(tokenizer, train={"path": str(path)}).train[0]
    ids = prompt_ids(prompt, format="completion", tokenizer=tokenizer)
    assert row["input_ids"][: len(ids)].tolist() == ids
    assert (row["labels"] != IGNORED).tolist() == [False] * len(ids) + [True] * (
        len(row["labels"]) - len(ids)
    )
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    if make is merging_tokenizer:
        assert trained_text(tokenizer, row) == completion + "</s>"


def test_a_cut_between_prompt_and_completion_puts_no_space_there(tmp_path):
    tokenizer = prefixing_tokenizer()
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "xa", "completion": "b"}])
    row = ready(tokenizer, train={"path": str(path)}).train[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"].tolist()) == ["<s>", "▁", "x", "a", "b", "</s>"]


def test_plain_rows_begin_as_the_tokenizer_begins_and_only_once(tmp_path):
    tokenizer = prefixing_tokenizer()
    assert beginning(tokenizer) == [1]
    assert beginning(merging_tokenizer()) == []
    assert prompt_text("ab", format="text", tokenizer=tokenizer) == "<s>ab"
    assert prompt_ids("ab", format="text", tokenizer=tokenizer) == tokenizer("ab")["input_ids"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "ab"}, {"text": "<s>ab"}])
    for row in ready(tokenizer, train={"path": str(path)}).train:
        assert row["input_ids"].tolist().count(1) == 1
        assert row["input_ids"][0] == 1


def test_loss_on_all_trains_the_prompt_of_a_completion_too(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "hello", "completion": " there"}])
    row = ready(train={"path": str(path)}, loss_on="all").train[0]
    assert (row["labels"] == row["input_ids"]).all()


def test_the_source_prefix_stands_before_a_prompt(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "hello", "completion": " there"}])
    assert texts_of(ready(train={"path": str(path)}, source_prefix="yes: ").train) == ["yes: hello there"]


ALPACA = {"instruction": "what is it?", "input": "hello", "output": "yes"}


def test_an_instruction_is_a_chat_where_there_is_a_template(tmp_path):
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    path = write_jsonl(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "input": ""}])
    prepared = ready(tokenizer, train={"path": str(path)}, system_prompt="no")
    text = tokenizer.decode(prepared.train[0]["input_ids"])
    assert text.startswith(
        "<|im_start|>system\nno<|im_end|>\n<|im_start|>user\nwhat is it?\n\nhello<|im_end|>\n"
    )
    assert trained_text(tokenizer, prepared.train[0]) == "yes<|im_end|>"
    ids = prompt_ids("what is it?", format="instruction", tokenizer=tokenizer, system_prompt="no")
    assert prepared.train[1]["input_ids"][: len(ids)].tolist() == ids


def test_an_instruction_has_a_plain_form_where_there_is_no_template_and_that_is_said(tmp_path):
    tokenizer = merging_tokenizer()
    path = write_jsonl(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "input": ""}])
    prepared = ready(tokenizer, train={"path": str(path)})
    assert texts_of(prepared.train)[0] == (
        "### Instruction:\nwhat is it?\n\n### Input:\nhello\n\n### Response:\nyes"
    )
    assert trained_text(tokenizer, prepared.train[0]) == "yes</s>"
    assert any("there is no chat template" in line for line in prepared.report.lines())
    ids = prompt_ids("what is it?", format="instruction", tokenizer=tokenizer)
    assert prepared.train[1]["input_ids"][: len(ids)].tolist() == ids


@pytest.mark.parametrize(
    ("row", "data", "says"),
    [
        (
            {"text": "a b"},
            {"loss_on": "completion"},
            "data.loss_on: 'completion' has no meaning for type 'text'",
        ),
        (
            {"text": "a b"},
            {"loss_on": "assistant"},
            "data.loss_on: 'assistant' has no meaning for type 'text'",
        ),
        ({"prompt": "a", "completion": "b"}, {"loss_on": "assistant"}, "use completion or all"),
        ({"text": "a b"}, {"system_prompt": "x"}, "data.system_prompt: type 'text' has no place for it"),
        ({"prompt": "a", "completion": "b"}, {"system_prompt": "x"}, "type 'completion' has no place for it"),
        ({"text": "a b"}, {"source_prefix": "x"}, "data.source_prefix: type 'text' has no prompt"),
        ({"prompt": "a", "completion": "b"}, {"overflow": "split"}, "'split' is for type 'text'"),
        ({"text": "a b"}, {"overflow": "split", "max_length": 2}, "fewer than 3 tokens"),
        ({"text": "a b"}, {"packing": True}, "set data.max_length"),
        ({"text": "a b"}, {"packing": True, "streaming": True, "max_length": 9}, "cannot be packed"),
        ({"text": "a b"}, {"eval": 0.5, "streaming": True}, "name a source instead"),
    ],
)
def test_a_setting_that_means_nothing_here_is_refused(tmp_path, row, data, says):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(RecipeError, match=says):
        ready(train={"path": str(path)}, **data)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello", "completion": ""},
        {"instruction": "hello", "output": ""},
        {"text": ""},
        {"messages": [{"role": "user", "content": "hello"}]},
    ],
)
def test_a_row_without_a_trained_token_is_refused(tmp_path, row):
    path = tmp_path / "a.jsonl"
    fine = {"text": "a b"} if "text" in row else {**row, "completion": "a", "output": "a"}
    if "messages" in row:
        fine = {"messages": [*row["messages"], {"role": "assistant", "content": "yes"}]}
    write_jsonl(path, [fine, row])
    tokenizer = merging_tokenizer(TEMPLATES["chatml"] if "messages" in row else None)
    with pytest.raises(DataError, match=r"a\.jsonl: row 2: no token of the row is trained"):
        ready(tokenizer, train={"path": str(path)})


# Rows of 4, 9 and 14 tokens with their end.
LONG = [{"text": "é" * 1 + "z"}, {"text": "é" * 4}, {"text": "é" * 6 + "z"}]


def test_rows_longer_than_max_length_are_refused_all_at_once(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    with pytest.raises(DataError) as caught:
        ready(train={"path": str(path)}, max_length=5)
    assert "a.jsonl: row 2: 9 tokens are more than max_length 5" in str(caught.value)
    assert "1 more rows are too long, the longest 14" in str(caught.value)
    assert "truncate, drop or split" in str(caught.value)


def test_truncating_cuts_on_the_right_and_counts(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    prepared = ready(train={"path": str(path)}, max_length=5, overflow="truncate")
    assert prepared.train.lengths == [4, 5, 5]
    whole = ready(train={"path": str(path)})
    assert prepared.train[2]["input_ids"].tolist() == whole.train[2]["input_ids"][:5].tolist()
    assert any("2 of 3 rows cut at max_length" in line for line in prepared.report.lines())


def test_a_row_that_truncating_leaves_nothing_to_train_is_dropped_and_counted(tmp_path):
    rows = [{"prompt": "é" * 9, "completion": "a"}, {"prompt": "a", "completion": "b"}]
    prepared = ready(
        train={"path": str(write_jsonl(tmp_path / "a.jsonl", rows))}, max_length=5, overflow="truncate"
    )
    assert len(prepared.train) == 1
    assert any("1 of 2 rows dropped" in line for line in prepared.report.lines())


def test_dropping_counts(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    prepared = ready(train={"path": str(path)}, max_length=9, overflow="drop")
    assert prepared.train.lengths == [4, 9]
    assert prepared.report.train_sources[0].dropped == 1
    assert any("1 of 3 rows dropped" in line for line in prepared.report.lines())


def test_a_data_set_of_which_all_rows_are_dropped_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    for streaming in (False, True):
        with pytest.raises(DataError, match="rows were dropped"):
            ready(train={"path": str(path)}, max_length=3, overflow="drop", streaming=streaming)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), limit=st.integers(3, 20))
def test_splitting_loses_no_token_and_leaves_none_alone(tmp_path_factory, length, limit):
    path = write_jsonl(tmp_path_factory.mktemp("split") / "a.jsonl", [{"text": "z" * length}])
    whole = ready(train={"path": str(path)}).train[0]["input_ids"].tolist()
    prepared = ready(train={"path": str(path)}, max_length=limit, overflow="split")
    pieces = [prepared.train[at]["input_ids"].tolist() for at in range(len(prepared.train))]
    assert [token for piece in pieces for token in piece] == whole
    assert all(2 <= len(piece) <= limit for piece in pieces)
    assert prepared.report.train_sources[0].split_pieces == (len(pieces) if len(whole) > limit else 0)


def test_without_max_length_the_model_s_own_is_the_limit(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    with pytest.raises(DataError, match="max_length 8"):
        ready(train={"path": str(path)}, model_max_length=8)
    assert ready(train={"path": str(path)}, model_max_length=int(1e30)).report.max_length is None


def test_a_max_length_that_the_model_does_not_take_is_warned_of(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", LONG)
    lines = ready(train={"path": str(path)}, max_length=90, model_max_length=40).report.lines()
    assert any("max_length 90 is more than the model's 40" in line for line in lines)


def test_a_tokenizer_without_an_end_is_warned_of(tmp_path):
    tokenizer = merging_tokenizer()
    tokenizer.eos_token = None
    prepared = ready(tokenizer, train={"path": numbered(tmp_path, 2)})
    assert any("no end-of-sequence token" in line for line in prepared.report.lines())


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, {1: 10}), (0.5, {1: 5}), (2.0, {2: 10}), (1.5, {1: 5, 2: 5})]
)
def test_a_weight_says_how_often_each_row_comes(tmp_path, weight, times):
    sources = [{"path": numbered(tmp_path, 10), "weight": weight}, {"path": numbered(tmp_path, 4, "b")}]
    texts = Counter(texts_of(ready(train=sources).train))
    of_a = Counter(count for text, count in texts.items() if text.startswith("a"))
    assert of_a == times
    assert [texts[f"b{at}"] for at in range(4)] == [1] * 4


def test_the_part_of_a_fractional_weight_is_the_seed_s(tmp_path):
    source = {"path": numbered(tmp_path, 40), "weight": 0.5}
    first, again, other = (texts_of(ready(train=source, seed=seed).train) for seed in (1, 1, 2))
    assert first == again != other


def test_a_weight_never_leaves_a_source_out():
    assert len(weighted([np.arange(3)], [0.01], 0)) == 1


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 4), min_size=2, max_size=30),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 9),
)
def test_a_split_is_whole_disjoint_and_keeps_examples_together(pieces, fraction, seed):
    examples = np.repeat(np.arange(len(pieces)), pieces)
    train, held = split_for_eval(examples, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(examples)))
    assert len(train)
    assert len(held)
    assert not set(examples[train]) & set(examples[held])


def test_an_eval_fraction_is_split_by_the_seed_and_shares_no_row(tmp_path):
    train = {"path": numbered(tmp_path, 20), "weight": 2.0}
    first, again, other = (ready(train=train, eval=0.25, seed=seed) for seed in (3, 3, 4))
    assert len(first.eval) == 5
    assert len(first.train) == 30
    assert not set(texts_of(first.train)) & set(texts_of(first.eval))
    assert texts_of(first.eval) == texts_of(again.eval) != texts_of(other.eval)


def test_one_row_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="one row cannot be split"):
        ready(train={"path": numbered(tmp_path, 1)}, eval=0.5)


def test_eval_sources_are_read_as_train_sources_are(tmp_path):
    prepared = ready(train={"path": numbered(tmp_path, 3)}, eval=[{"path": numbered(tmp_path, 2, "b")}])
    assert texts_of(prepared.eval) == ["b0", "b1"]
    assert [line.split()[0] for line in prepared.report.lines()] == ["train", "eval", "source", "source"]


def test_the_report_counts_what_the_rows_hold(tmp_path):
    rows = [{"prompt": "é" * at, "completion": "z"} for at in range(1, 21)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    prepared = ready(train={"path": str(path)})
    report = prepared.report
    lengths = sorted(len(row["input_ids"]) for row in prepared.train)
    assert prepared.train.lengths == [len(row["input_ids"]) for row in prepared.train]
    assert (report.train.rows, report.train.tokens, report.train.trained_tokens) == (20, sum(lengths), 40)
    assert report.train.lengths == {
        "min": lengths[0],
        "median": lengths[10],
        "p95": lengths[19],
        "max": lengths[-1],
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.train_sources[0].sha256 == {str(path): digest}
    assert json.loads(json.dumps(report.as_dict()))["train"]["rows"] == 20


def test_the_first_token_of_a_row_is_not_counted_as_trained(tmp_path):
    prepared = ready(train={"path": numbered(tmp_path, 3)})
    assert prepared.report.train.trained_tokens == prepared.report.train.tokens - 3


def test_blank_lines_of_a_text_file_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n\ntwo\n")
    assert any(
        "2 blank lines" in line for line in ready(train={"path": str(tmp_path / "a.txt")}).report.lines()
    )


def test_errors_in_a_later_batch_name_their_row(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 600
    rows[555] = {"messages": [{"role": "system", "content": "a"}, *rows[0]["messages"]]}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"row 556: the chat template refuses the messages: System role"):
        ready(merging_tokenizer(TEMPLATES["turns"]), train={"path": str(path)})
