"""Each format reads its columns, and refuses what it cannot read in a line that names the row."""

from __future__ import annotations

import json

import pytest

from peftcli.data.columns import guess_format, load_format, select
from peftcli.data.example import Chat, Completion, Instruction, Pair, Text
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, RecipeError
from peftcli.registry import FORMATS
from peftcli.tasks.causal_lm import CausalLM
from tests.data.writers import TEMPLATES, merging_tokenizer, recipe_with, write_jsonl

NAMES = ("text", "completion", "instruction", "chat")


def read(name, row, columns=None):
    found = load_format(name)
    return found(select(found, columns, row))


def prepared(tmp_path, rows, source=None, **data):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = recipe_with(train={"path": str(path), **(source or {})}, **data)
    task = CausalLM(recipe, merging_tokenizer(TEMPLATES["chatml"]))
    return prepare(
        recipe.data,
        encoder=task.encoder(),
        seed=0,
        model_max_length=None,
    )


def user_and_assistant(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_registered_format_declares_its_columns(name):
    found = load_format(name)
    assert found.name == name
    assert found.columns
    assert found.read.__doc__


def test_each_format_reads_its_columns():
    assert read("text", {"text": "a", "id": 3}) == Text("a")
    assert read("completion", {"prompt": "a", "completion": "b"}) == Completion("a", "b")
    assert read("instruction", {"instruction": "a", "output": "b"}) == Instruction("a", "", "b")
    assert read("instruction", {"instruction": "a", "input": None, "output": "b"}) == Instruction(
        "a", "", "b"
    )
    assert read("instruction", {"instruction": "a", "input": "c", "output": "b"}) == Instruction(
        "a", "c", "b"
    )
    assert read("chat", {"messages": user_and_assistant("a", "b")}) == Chat(user_and_assistant("a", "b"))
    assert read("pairs", {"source": "a", "target": ""}) == Pair("a", "")


def test_sharegpt_conversations_are_chats():
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("observation", "c"), ("model", "d")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    roles = ["system", "user", "assistant", "tool", "assistant"]
    assert [message["role"] for message in read("chat", row).messages] == roles
    assert [message["content"] for message in read("chat", row).messages] == list("sabcd")


def test_other_text_in_a_message_is_kept_for_the_template():
    message = {"role": "assistant", "content": "b", "reasoning_content": "hm", "name": None}
    assert read("chat", {"messages": [message]}).messages == [
        {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    ]


def test_columns_are_renamed():
    row = {"question": "a", "answer": "b"}
    assert read("completion", row, {"prompt": "question", "completion": "answer"}) == Completion("a", "b")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "a", "id": 1}, "text"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "output": "b", "input": "c"}, "instruction"),
        ({"messages": []}, "chat"),
        ({"conversations": []}, "chat"),
    ],
)
def test_a_type_is_guessed_from_the_columns(row, name):
    assert guess_format(NAMES, row, None)[0].name == name


def test_a_type_is_guessed_through_renames():
    found, columns = guess_format(NAMES, {"q": "a", "a": "b"}, {"prompt": "q", "completion": "a"})
    assert (found.name, columns) == ("completion", ["q", "a"])


def test_columns_that_fit_two_formats_are_refused():
    with pytest.raises(DataError, match="fit text and chat; set `type`"):
        guess_format(NAMES, {"text": "a", "messages": []}, None)


def test_columns_that_fit_no_format_are_refused_with_what_to_write():
    with pytest.raises(DataError) as caught:
        guess_format(NAMES, {"question": "a", "answer": "b"}, None)
    assert "`type: completion, columns: {prompt: question, completion: answer}`" in str(caught.value)
    with pytest.raises(DataError, match=r"`type: pairs, columns: {source: question, target: answer}`"):
        guess_format(["pairs"], {"question": "a", "answer": "b"}, None)
    assert "instruction {instruction, output, input?}" in str(caught.value)
    assert "chat {messages} or {conversations}" in str(caught.value)


def test_a_guess_is_reported(tmp_path):
    report = prepared(tmp_path, [{"messages": user_and_assistant("a", "b"), "id": 1}]).report
    assert any(
        "type: chat (guessed from the column messages); not used: id" in line for line in report.lines()
    )


@pytest.mark.parametrize(
    ("row", "source", "says"),
    [
        (
            {"txt": "a"},
            {"type": "text"},
            "row 2: no column 'text' for type 'text' {text}; the row has txt; did you",
        ),
        ({"text": None}, {}, "row 2: text must be text, not null"),
        ({"text": 3}, {}, "row 2: text must be text, not int"),
        ({"text": "\ud800"}, {}, "row 2: text holds half a surrogate pair at character 1"),
        ({"text": ""}, {}, "row 2: no token of the row is trained"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path, row, source, says):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a b c"}\n' + json.dumps(row) + "\n")
    recipe = recipe_with(train={"path": str(path), **source})
    task = CausalLM(recipe, merging_tokenizer())
    with pytest.raises(DataError) as caught:
        prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=None)
    assert f"{path}: {says}" in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hi", "messages must be a list of messages, not str"),
        ([], "messages is empty"),
        (["hi"], "messages[0] must be an object like {role, content}, not str"),
        ([{"role": "user"}], "messages[0] has no 'content'; it has role"),
        ([{"role": "user", "content": None}], "messages[0].content must be text, not null"),
        ([{"role": "user", "content": 3}], "messages[0].content must be text, not int"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content must be text, not list"),
        ([{"role": "asistant", "content": "x"}], "unknown role 'asistant'; did you mean 'assistant'?"),
        ([{"role": "user", "content": "x", "weight": 0}], "messages[0].weight is not text"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls is not text"),
        (
            [{"role": "user", "content": "x", "from": "gpt", "value": "y"}],
            "mixes role/content with from/value",
        ),
    ],
)
def test_a_bad_message_is_refused_by_its_place(tmp_path, messages, says):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, [{"messages": messages}])
    assert "rows.jsonl: row 1: " in str(caught.value)
    assert says in str(caught.value)


def test_a_rename_of_a_column_that_the_format_does_not_have_is_refused(tmp_path):
    rows = [{"text": "a b"}]
    with pytest.raises(RecipeError, match="type 'text' has no column 'txt'; did you mean 'text'"):
        prepared(tmp_path, rows, {"type": "text", "columns": {"txt": "text"}})


def test_an_unknown_type_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="unknown data type 'chatt'; did you mean 'chat'"):
        prepared(tmp_path, [{"text": "a b"}], {"type": "chatt"})


def test_parquet_rows_with_null_keys_in_messages_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = [
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": "b", "name": "c"},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    recipe = recipe_with(train={"path": str(tmp_path / "a.parquet")})
    task = CausalLM(recipe, merging_tokenizer(TEMPLATES["chatml"]))
    assert len(prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=None).train) == 1
