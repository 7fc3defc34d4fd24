"""Completions: alone, in batches, with and without the adapter, stopped where they must be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

from peftcli.data.example import Instruction
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.run.converse import converse
from peftcli.run.folder import open_run
from peftcli.run.generate import Generator, open_generator
from peftcli.run.lock import Lock, write_lock
from peftcli.run.prompts import answer, read_prompts
from peftcli.run.sampling import Sampling

GREEDY = Sampling(max_new_tokens=24, temperature=0)
PROMPTS = [
    "a",
    "What is it?",
    "سلام، حال شما چطور است؟",
    "👩‍🚀" * 3,
    "one two three four five six seven",
    "b\nc",
]


def save_adapter(base: Path, folder: Path) -> Path:
    """A LoRA adapter with random weights on both sides, so that it changes what the base says."""
    model = AutoModelForCausalLM.from_pretrained(base)
    targets = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    set_seed(1)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def lock_of(base: Path, folder: Path, format: str, *, template: str | None = None, **data: Any) -> None:  # noqa: A002
    recipe = {"base_model": str(base), "task_type": "CAUSAL_LM", "data": data}
    write_lock(folder, Lock(recipe, {"name": str(base)}, {"format": format}, {}, template))


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2: its positions are learned, so that padding that shifts them changes everything."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("base") / "tiny-gpt2"
    sizes = {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(vocab_size=259, bos_token_id=None, eos_token_id=258, pad_token_id=256, **sizes)
    model = GPT2LMHeadModel(config)
    model.transformer.wpe.weight.data.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_adapter(tiny_base, tmp_path_factory.mktemp("run"))
    lock_of(tiny_base, folder, "chat", system_prompt="be brief")
    return folder


def opened(folder: Path, sampling: Sampling = GREEDY, **more: Any) -> Generator:
    return open_generator(folder, sampling, **{"seed": 0, "say": lambda line: None} | more)


@pytest.mark.parametrize("name", ["tiny_base", "tiny_gpt2"])
@pytest.mark.parametrize("batch_size", [2, 3, 6])
def test_a_batch_gives_every_row_what_it_gets_alone(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, batch_size: int
) -> None:
    base = request.getfixturevalue(name)
    save_adapter(base, tmp_path)
    lock_of(base, tmp_path, "text")
    generator = opened(tmp_path)
    prompts = [generator.encode(text) for text in PROMPTS]
    alone = [generator.stream(ids, lambda piece: None) for ids in prompts]
    assert generator.complete(prompts, batch_size) == alone
    assert len({completion.text for completion in alone}) > 1


def test_a_row_without_room_for_all_tokens_gets_in_a_batch_what_it_gets_alone(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    save_adapter(tiny_gpt2, tmp_path)
    lock_of(tiny_gpt2, tmp_path, "text")
    generator = opened(tmp_path, Sampling(max_new_tokens=90, temperature=0))
    prompts = [generator.encode(text) for text in ("a", "b" * 20, "c" * 20, "d" * 95)]
    alone = [generator.stream(ids, lambda piece: None) for ids in prompts]
    assert generator.complete(prompts, 8) == alone
    assert [generator.room(ids) for ids in prompts] == [90, 76, 76, 1]
    assert [completion.tokens for completion in alone][1:] == [76, 76, 1]
    with pytest.raises(DataError, match="has 96 tokens, and the model takes 96 in all"):
        generator.encode("e" * 96)


def test_what_is_streamed_is_what_is_returned(chat_run: Path) -> None:
    generator = opened(chat_run)
    pieces: list[str] = []
    completion = generator.stream(generator.encode("hello"), pieces.append)
    assert "".join(pieces) == completion.text
    assert len(pieces) > 1


def test_greedy_tokens_are_those_of_real_peft(chat_run: Path, tiny_base: Path) -> None:
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), chat_run).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    generator = opened(chat_run)
    ids = generator.encode("hello")
    assert ids == inputs["input_ids"][0].tolist()
    completion = generator.stream(ids, lambda piece: None)
    assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_without_the_adapter_the_bare_base_answers(chat_run: Path, tiny_base: Path) -> None:
    generator = opened(chat_run, with_adapter=False)
    ids = generator.encode("hello")
    bare = AutoModelForCausalLM.from_pretrained(tiny_base)
    expected = bare.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24)
    text = generator.tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)
    assert generator.stream(ids, lambda piece: None).text == text
    assert opened(chat_run).stream(ids, lambda piece: None).text != text


def test_a_prompt_is_written_as_the_training_rows_were(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(tiny_base, tmp_path)
    decode = AutoTokenizer.from_pretrained(tiny_base).decode
    lock_of(tiny_base, tmp_path, "chat", system_prompt="S", source_prefix="P: ")
    chat = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP: hi<|im_end|>\n<|im_start|>assistant\n"
    assert decode(opened(tmp_path).encode("hi")) == chat
    assert decode(opened(tmp_path, raw=True).encode("hi")) == "hi"
    lock_of(tiny_base, tmp_path, "completion", source_prefix="P: ")
    assert decode(opened(tmp_path).encode("hi")) == "P: hi"
    own = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    lock_of(tiny_base, tmp_path, "chat", template=own)
    assert decode(opened(tmp_path).encode("hi")) == "[hi]"


def test_held_out_rows_are_answered_as_they_stand_under_the_columns_of_training(
    tiny_base: Path, tmp_path: Path
) -> None:
    save_adapter(tiny_base, tmp_path)
    source = {"path": "x", "columns": {"instruction": "question", "output": "answer"}}
    lock_of(tiny_base, tmp_path, "instruction", train=[source])
    file = tmp_path / "in.jsonl"
    file.write_text('{"question": "q", "input": "it", "answer": "a"}\n{"instruction": "q", "input": null}\n')
    rows = read_prompts(file, open_run(tmp_path).columns)
    assert [row.prompt for row in rows] == [Instruction("q", "it", ""), Instruction("q", "", "")]
    generator = opened(tmp_path)
    assert generator.encode(rows[0].prompt) == generator.encode("q\n\nit")
    assert generator.encode(rows[1].prompt) == generator.encode("q")
    lock_of(tiny_base, tmp_path, "completion")
    with pytest.raises(DataError, match="needs type 'instruction', but the rows were 'completion'"):
        opened(tmp_path).encode(rows[0].prompt)


def test_shared_conversations_are_prompts_too(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"conversations": [{"from": "human", "value": "hi"}], "completion": "right"}\n')
    assert read_prompts(file)[0].prompt == [{"role": "user", "content": "hi"}]


def test_without_a_lock_the_tokenizers_template_decides_and_it_is_said(
    tiny_base: Path, tmp_path: Path
) -> None:
    save_adapter(tiny_base, tmp_path)
    said: list[str] = []
    assert opened(tmp_path, say=said.append).format == "chat"
    assert len(said) == 1
    assert "prompts are taken as chats" in said[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    assert opened(tmp_path, say=said.append).format == "text"
    assert "prompts are taken as they are" in said[1]


def test_another_base_than_the_one_trained_on_is_warned_of(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(tiny_base, tmp_path)
    recipe = {"base_model": str(tiny_base), "task_type": "CAUSAL_LM"}
    write_lock(tmp_path, Lock(recipe, {"fingerprint": "sha256:0"}, {"format": "text"}, {}))
    said: list[str] = []
    opened(tmp_path, say=said.append)
    assert any("its content has changed since" in line for line in said)


def stopping_at(generator: Generator, token: int) -> Generator:
    """The same generator on a copy of its model that says nothing but `token`."""
    model = copy.deepcopy(generator.model)
    head = model.get_base_model().lm_head
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(token), 259).float())
    return Generator(
        model, generator.tokenizer, generator.run, generator.format, generator.stops, generator.sampling
    )


def test_a_completion_ends_at_the_token_that_ends_a_turn(chat_run: Path) -> None:
    generator = stopping_at(opened(chat_run), 258)
    completion = generator.stream(generator.encode("hi"), lambda piece: None)
    assert (completion.text, completion.tokens, completion.finish_reason) == ("", 0, "stop")


def test_the_templates_end_of_turn_stops_where_the_tokenizers_eos_is_another(
    tiny_base: Path, tmp_path: Path
) -> None:
    save_adapter(tiny_base, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(tmp_path)
    lock_of(tiny_base, tmp_path, "chat")
    assert opened(tmp_path).stops == {256, 258}
    lock_of(tiny_base, tmp_path, "text")
    # 258 is still there: the base's own generation config names it.
    assert opened(tmp_path).stops == {256, 258}


def test_a_completion_that_is_cut_says_so(chat_run: Path) -> None:
    generator = stopping_at(opened(chat_run, Sampling(max_new_tokens=5, temperature=0)), 65)
    completion = generator.stream(generator.encode("hi"), lambda piece: None)
    assert (completion.tokens, completion.finish_reason) == (5, "length")


def test_a_seed_repeats_and_another_varies(chat_run: Path) -> None:
    def sampled(seed: int | None) -> str:
        generator = opened(chat_run, Sampling(max_new_tokens=24, temperature=1.0), seed=seed)
        return generator.stream(generator.encode("hi"), lambda piece: None).text

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(None) != sampled(None)


def test_sampling_flags_reach_the_model(chat_run: Path) -> None:
    greedy = opened(chat_run)
    ids = greedy.encode("hi")
    expected = greedy.stream(ids, lambda piece: None).text
    one = opened(chat_run, Sampling(max_new_tokens=24, top_k=1))
    assert one.stream(ids, lambda piece: None).text == expected
    narrow = opened(chat_run, Sampling(max_new_tokens=24, temperature=1.0, top_p=1e-6))
    assert narrow.stream(ids, lambda piece: None).text == expected
    penalised = opened(chat_run, Sampling(max_new_tokens=24, temperature=0, repetition_penalty=50.0))
    assert penalised.stream(ids, lambda piece: None).text != expected


def test_the_bases_own_generation_config_holds_where_no_flag_speaks(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.generation_config.update(do_sample=True, temperature=0.5, top_p=0.5)
    own = model.generation_config
    plain = Sampling().config(own, max_new_tokens=3, stops=[2], pad=0)
    assert (plain.do_sample, plain.temperature, plain.top_p) == (True, 0.5, 0.5)
    assert (plain.max_new_tokens, plain.eos_token_id, plain.pad_token_id) == (3, [2], 0)
    greedy = Sampling(temperature=0).config(own, max_new_tokens=3, stops=[2], pad=0)
    assert (greedy.do_sample, greedy.temperature, greedy.top_p) == (False, None, None)
    warmer = Sampling(temperature=0.9).config(own, max_new_tokens=3, stops=[2], pad=0)
    assert (warmer.temperature, warmer.top_p) == (0.9, 0.5)
    assert own.temperature == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"temperature": -1.0}, "--temperature must be 0"),
        ({"top_p": 0.0}, "--top-p must be"),
        ({"top_p": 1.5}, "--top-p must be"),
        ({"top_k": 0}, "--top-k must be"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty must be"),
        ({"temperature": 0, "top_p": 0.5}, "no effect with --temperature 0"),
    ],
)
def test_a_flag_out_of_range_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Sampling(**settings)


@pytest.mark.parametrize("prompt", ["", " \n", []])
def test_an_empty_prompt_is_refused(chat_run: Path, prompt: Any) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        opened(chat_run).encode(prompt)


def test_an_adapter_that_does_not_generate_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(tiny_base, tmp_path)
    write_lock(tmp_path, Lock({"base_model": str(tiny_base), "task_type": "SEQ_CLS"}, {}, {}, {}))
    with pytest.raises(ModelError, match="task is SEQ_CLS"):
        opened(tmp_path)


def test_a_conversation_remembers_until_it_is_told_to_forget(chat_run: Path) -> None:
    generator = opened(chat_run)
    written: list[str] = []
    said: list[str] = []
    messages = converse(
        generator, ["hi\n", "\n", "and سلام\n", "/exit\n", "never"], written.append, said.append
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    first = generator.stream(generator.encode("hi"), lambda piece: None).text
    assert messages[1]["content"] == first
    second = generator.stream(generator.encode(messages[:3]), lambda piece: None).text
    assert messages[3]["content"] == second
    assert "".join(written) == f"{first}\n{second}\n"
    again = converse(generator, ["other", "/new", "hi"], written.append, said.append)
    assert again == messages[:2]


def test_a_conversation_needs_an_adapter_whose_rows_were_written_as_chats(
    tiny_base: Path, tmp_path: Path
) -> None:
    save_adapter(tiny_base, tmp_path)
    lock_of(tiny_base, tmp_path, "completion")
    with pytest.raises(RecipeError, match="rows were 'completion'"):
        converse(opened(tmp_path), ["hi"], print, print)
    lock_of(tiny_base, tmp_path, "instruction", system_prompt="be brief")
    generator = opened(tmp_path)
    said = converse(generator, ["hi"], lambda piece: None, print)
    assert said[1]["content"] == generator.stream(generator.encode("hi"), lambda piece: None).text


def test_rows_are_answered_in_their_order_and_a_bad_one_is_named(chat_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "long long long"}\n\n{"messages": [{"role": "user", "content": "a"}]}\n')
    generator = opened(chat_run)
    rows = read_prompts(file)
    answers = answer(generator, rows, batch_size=2)
    alone = [generator.stream(generator.encode(row.prompt), lambda piece: None).as_dict() for row in rows]
    assert answers == alone
    file.write_text('{"prompt": "a"}\n{"messages": [{"role": "assistant", "content": "a"}]}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: the last message is the assistant's"):
        answer(generator, read_prompts(file), batch_size=2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", ":2: broken JSON"),
        (b"3", ":2: is not a JSON object"),
        (b'{"promt": "a"}', "did you mean 'prompt'?"),
        (b'{"instruction": "a", "input": 3}', "input must be text"),
        (b'{"prompt": "a", "messages": []}', "keep one"),
        (b'{"prompt": 3}', "must be text"),
        (b'{"messages": "a"}', "must be a list"),
        (b'{"messages": [{"role": "user"}]}', "has no 'content'"),
        (b'{"prompt": "a", "generated_text": "b"}', "'generated_text' already"),
        (b'{"prompt": "\\ud83d"}', "surrogate"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"prompt": "a\xe2\x80\xa8b"}\n' + line)
    with pytest.raises(DataError) as caught:
        read_prompts(file)
    assert words in str(caught.value)
