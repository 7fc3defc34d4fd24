"""Rows kept for later starts: the same rows, never out of date, never in the way."""

from __future__ import annotations

import json

import pytest

from peftcli.data import kept
from peftcli.data.prepare import prepare
from peftcli.tasks.causal_lm import CausalLM
from tests.conftest import CHATML
from tests.data.writers import merging_tokenizer, recipe_with, write_jsonl

COUNT = 2_100


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "peftcli" / "rows"


def chats(tmp_path, count=COUNT, name="chats", said="seven"):
    """Rows of a chat each, some of them longer than others."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {at}? " + "so " * 4 * (at % 7)},
                {"role": "assistant", "content": said},
            ]
        }
        for at in range(count)
    ]
    return str(write_jsonl(tmp_path / f"{name}.jsonl", rows))


def ready(tokenizer=None, model_max_length=None, **data):
    recipe = recipe_with(**{"chat_template": CHATML, **data})
    task = CausalLM(recipe, tokenizer or merging_tokenizer())
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=model_max_length), task


def contents(rows):
    return [{name: value.tolist() for name, value in row.items()} for row in rows]


def from_before(prepared):
    return ["earlier start" in source.kept for source in prepared.report.train_sources]


def test_the_second_start_takes_the_same_rows_and_says_the_same_of_them(tmp_path):
    data = {"train": [{"path": chats(tmp_path)}], "max_length": 60, "overflow": "drop", "eval": 0.1}
    first, its_task = ready(**data)
    second, other_task = ready(**data)
    assert from_before(first) == [False]
    assert from_before(second) == [True]
    assert first.report.train_sources[0].dropped > 0
    assert contents(second.train) == contents(first.train)
    assert contents(second.eval) == contents(first.eval)
    assert second.report.as_dict() == first.report.as_dict()
    assert [second.train.places(at) for at in (0, 7, -1)] == [first.train.places(at) for at in (0, 7, -1)]
    assert other_task.tally == its_task.tally
    assert other_task.tally.counts["turns"] == COUNT


def test_of_several_sources_each_is_taken_by_itself(tmp_path):
    few, many = chats(tmp_path, 30, "few", "three"), chats(tmp_path)
    ready(train=[{"path": many}])
    data = {"train": [{"path": few}, {"path": many, "weight": 0.5}], "eval": 0.1}
    mixed, task = ready(**data)
    assert from_before(mixed) == [False, True]
    again, _ = ready(**data)
    assert contents(again.train) == contents(mixed.train)
    assert [row["input_ids"].tolist() for row in mixed.eval] == [
        row["input_ids"].tolist() for row in again.eval
    ]
    assert task.tally.counts["turns"] == COUNT + 30
    places = {place for at in range(len(mixed.train)) for place in mixed.train.places(at)}
    assert {place.split(": ")[0] for place in places} == {few, many}
    assert places == {place for at in range(len(again.train)) for place in again.train.places(at)}
    assert "weight 0.5" in mixed.report.train_sources[1].line()


def other_words(tmp_path):
    """Another tokenizer: it knows a word more."""
    tokenizer = merging_tokenizer()
    tokenizer.add_tokens(["seven"])
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 61},
        {"overflow": "truncate"},
        {"loss_on": "completion"},
        {"system_prompt": "Be short."},
        {"source_prefix": "Say: "},
        {"chat_template": CHATML + "{# another #}"},
        {"tokenizer": other_words},
        {"columns": {"messages": "talk"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_are_encoded_again_where_they_depend_on_what_changed(tmp_path, change):
    path = chats(tmp_path)
    data = {"max_length": 60, "overflow": "drop"}
    ready(train=[{"path": path}], **data)
    source = {"path": path}
    if "columns" in change:
        text = (tmp_path / "chats.jsonl").read_text()
        (tmp_path / "chats.jsonl").write_text(text.replace('"messages"', '"talk"'))
        source["columns"] = change.pop("columns")
    tokenizer = change.pop("tokenizer")(tmp_path) if "tokenizer" in change else None
    prepared, _ = ready(tokenizer, train=[source], **(data | change))
    assert from_before(prepared) == [False]


def test_a_file_with_other_rows_under_the_same_name_and_size_is_read_again(tmp_path):
    ready(train=[{"path": chats(tmp_path)}])
    prepared, _ = ready(train=[{"path": chats(tmp_path, said="eight")}])
    assert from_before(prepared) == [False]
    tokens = merging_tokenizer().decode(prepared.train[0]["input_ids"])
    assert "eight" in tokens


def test_rows_of_a_template_that_tells_the_date_are_another_day_s(tmp_path):
    template = CHATML + "{# {{ strftime_now('%d %b') }} #}"
    recipe = recipe_with(train=[{"path": chats(tmp_path)}], chat_template=template)
    identity = CausalLM(recipe, merging_tokenizer()).identity()
    assert json.loads(identity)["date"] is not None
    assert json.loads(CausalLM(recipe_with(), merging_tokenizer()).identity())["date"] is None


@pytest.mark.parametrize("where", [0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_spoiled_file_of_kept_rows_is_not_taken(tmp_path, cache, where):
    data = {"train": [{"path": chats(tmp_path)}]}
    first, _ = ready(**data)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    second, _ = ready(**data)
    assert from_before(second) == [False]
    assert contents(second.train) == contents(first.train)
    third, _ = ready(**data)
    assert from_before(third) == [True]


def test_few_rows_are_not_kept(tmp_path, cache):
    ready(train=[{"path": chats(tmp_path, 50)}])
    assert not cache.exists()


def test_rows_that_cannot_be_kept_are_trained_on_and_that_is_said(tmp_path, cache):
    cache.parent.parent.write_text("a file stands where the folder should")
    prepared, _ = ready(train=[{"path": chats(tmp_path)}])
    assert len(prepared.train) == COUNT
    assert "its encoded rows could not be kept in" in prepared.report.train_sources[0].line()
    assert "Not a directory" in prepared.report.train_sources[0].line()


def test_of_what_is_kept_the_longest_unused_goes_first(tmp_path, cache, monkeypatch):
    old = {"train": [{"path": chats(tmp_path, name="old")}]}
    new = {"train": [{"path": chats(tmp_path, name="new")}]}
    ready(**old)
    size = next(cache.iterdir()).stat().st_size
    ready(**new)
    monkeypatch.setattr(kept, "_MOST", int(2.5 * size))
    assert from_before(ready(**old)[0]) == [True]
    ready(train=[{"path": chats(tmp_path, name="third")}])
    assert from_before(ready(**old)[0]) == [True]
    assert from_before(ready(**new)[0]) == [False]
