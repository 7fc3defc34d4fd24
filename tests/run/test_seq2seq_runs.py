"""A translation learnt through the real commands: trained, evaluated beside its base, and generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peftcli.cli.app import run as command
from peftcli.data.example import Pair
from peftcli.errors import DataError, RecipeError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.run.adapted import open_adapted
from peftcli.run.evaluate import evaluate
from peftcli.run.generate import Generator, open_generator
from peftcli.run.lock import Lock, write_lock
from peftcli.run.sampling import Sampling
from peftcli.run.train import train
from tests.bases import tiny_base_for
from tests.data.writers import write_jsonl
from tests.tasks import translators
from tests.tasks.translators import recipe_of, sentences, taught_to_copy

GREEDY = Sampling(max_new_tokens=12, temperature=0)


def nobody(_: str) -> None:
    """Takes what is said."""


def trained_by_command(folder: Path, make: Any, copying: dict[str, Any], **training: Any) -> Path:
    """The run's folder of an adapter on a base of ours, trained by `peftcli train`."""
    base = folder / "base"
    model, _ = make(base)
    taught_to_copy(model, **copying).save_pretrained(base)
    write_jsonl(folder / "train.jsonl", sentences(400, seed=0))
    write_jsonl(folder / "eval.jsonl", sentences(64, seed=1))
    recipe = {
        "base_model": str(base),
        "task_type": "SEQ_2_SEQ_LM",
        "task": {"max_target_length": 8},
        "adapter": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "eval": {"path": str(folder / "eval.jsonl")},
        },
        "training": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 16,
            "eval_strategy": "epoch",
            "predict_with_generate": True,
            "logging_steps": 25,
        }
        | training,
        "gates": {"eval_exact_match": ">= 0.75", "eval_chrf": "> 85"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def bart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def one_layer(folder: Path) -> Any:
        return translators.bart(folder, init_std=0.1, d_model=64)

    copying = {"steps": 200, "learning_rate": 5e-3}
    folder = tmp_path_factory.mktemp("bart")
    return trained_by_command(folder, one_layer, copying, learning_rate=5e-3, num_train_epochs=3)


def opened(folder: Path, sampling: Sampling = GREEDY, **more: Any) -> Generator:
    return open_generator(folder, sampling, **{"seed": 0, "say": nobody} | more)


def said_alone(generator: Generator, text: str) -> str:
    return generator.stream(generator.encode(text), lambda piece: None).text


# The metric before and after.


def compared(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert command(["eval", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_bart_learns_to_translate(bart_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, bart_run)
    before, after = found["base"], found["adapter"]
    assert (before["eval_exact_match"], after["eval_exact_match"]) == (0, 1)
    assert before["eval_loss"] > 3
    assert after["eval_loss"] < 0.1
    assert after["eval_accuracy"] == after["eval_rougeL"] == 1
    assert after["eval_bleu"] == pytest.approx(100)
    assert after["eval_chrf"] == pytest.approx(100)
    assert found["gates"] == {"eval_exact_match >= 0.75": True, "eval_chrf > 85": True}


@pytest.mark.slow
def test_mt5_learns_to_translate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copying = {"steps": 1000, "learning_rate": 3e-3}
    run = trained_by_command(tmp_path, translators.mt5, copying, learning_rate=3e-3, num_train_epochs=12)
    found = compared(capsys, run)
    assert found["base"]["eval_exact_match"] == 0
    assert found["adapter"]["eval_exact_match"] >= 0.75
    assert found["base"]["eval_loss"] > 3
    assert found["adapter"]["eval_loss"] < 0.3


def test_other_batches_give_the_same_metrics(bart_run: Path) -> None:
    rows = str(bart_run.parent / "eval.jsonl")
    one, other = (evaluate(bart_run, rows, batch_size=size, say=nobody) for size in (5, 64))
    assert one.adapter == pytest.approx(other.adapter)
    assert one.base == pytest.approx(other.base)


def test_prediction_loss_only_leaves_generation_out(bart_run: Path, tmp_path: Path) -> None:
    data = {name: {"path": str(bart_run.parent / f"{name}.jsonl")} for name in ("train", "eval")}
    training = {"output_dir": str(tmp_path), "max_steps": 1, "eval_strategy": "epoch"}
    recipe = recipe_of(
        bart_run.parent / "base", data=data, training=training | {"prediction_loss_only": True}
    )
    assert list(train(recipe, say=nobody).outcome.last_eval) == ["eval_loss"]
    recipe = recipe_of(
        bart_run.parent / "base", data=data, training=training | {"overwrite_output_dir": True}
    )
    assert list(train(recipe, say=nobody).outcome.last_eval) == ["eval_loss", "eval_accuracy"]


# `peftcli generate`.


def test_a_text_is_generated_and_a_file_is_answered(
    bart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["generate", "--adapter", str(bart_run), "--prompt", "red cat"]) == 0
    assert capsys.readouterr().out == "rot katze\n"
    output = tmp_path / "out.jsonl"
    files = ["--input", str(bart_run.parent / "eval.jsonl"), "--output", str(output)]
    assert command(["generate", "--adapter", str(bart_run), *files]) == 0
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["generated_text"] for row in answers] == [row["target"] for row in answers]
    assert {row["finish_reason"] for row in answers} == {"stop"}


def test_a_batch_gives_every_source_what_it_gets_alone(bart_run: Path) -> None:
    generator = opened(bart_run)
    sources = [generator.encode(row["source"]) for row in sentences(9, seed=2)]
    alone = [generator.stream(ids, lambda piece: None) for ids in sources]
    assert generator.complete(sources, 4) == alone
    assert len({completion.text for completion in alone}) == 9


def test_what_is_streamed_comes_piece_by_piece_and_with_beams_at_once(bart_run: Path) -> None:
    written: list[str] = []
    generator = opened(bart_run)
    text = generator.stream(generator.encode("one red bird"), written.append).text
    assert "".join(written) == text == "eins rot vogel"
    assert len(written) > 1
    written.clear()
    generator = opened(bart_run, Sampling(max_new_tokens=12, temperature=0, num_beams=3))
    assert generator.stream(generator.encode("one red bird"), written.append).text == text
    assert written == [text]


def test_the_bare_base_copies(bart_run: Path) -> None:
    assert said_alone(opened(bart_run, with_adapter=False), "red cat") == "red cat"


def test_rows_name_their_prompt_as_training_rows_did(bart_run: Path, tmp_path: Path) -> None:
    rows = [{"source": "red cat"}, {"prompt": "red cat"}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.jsonl"
    arguments = ["generate", "--adapter", str(bart_run), "--input", str(file), "--output", str(output)]
    assert command(arguments) == 0
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["generated_text"] for row in answers] == ["rot katze"] * 2
    write_jsonl(file, [{"messages": [{"role": "user", "content": "red cat"}]}])
    assert command(arguments) == 3


def test_a_chat_is_refused(bart_run: Path) -> None:
    with pytest.raises(DataError, match="messages need type 'chat', but the rows were 'pairs'"):
        opened(bart_run).encode([{"role": "user", "content": "hi"}])
    assert command(["generate", "--adapter", str(bart_run), "--chat"]) == 2
    assert command(["predict", "--adapter", str(bart_run), "--input", "x", "--output", "y"]) == 2


def random_adapter(base: Path, folder: Path, **recipe: Any) -> Path:
    """An adapter with random weights, and the lock of a run on pairs."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    config.base_model_name_or_path = str(base)
    get_peft_model(model, config).save_pretrained(str(folder))
    if recipe:
        recipe = {"base_model": str(base), "task_type": "SEQ_2_SEQ_LM"} | recipe
        write_lock(folder, Lock(recipe, {"name": str(base)}, {"format": "pairs"}, {}, None))
    return folder


@pytest.fixture(scope="module")
def byte_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_for("SEQ_2_SEQ_LM", tmp_path_factory.mktemp("base") / "mt5")


def test_a_source_is_written_as_in_training_and_raw_without_the_prefix(
    byte_base: Path, tmp_path: Path
) -> None:
    random_adapter(byte_base, tmp_path, data={"source_prefix": "say: "})
    decode = AutoTokenizer.from_pretrained(byte_base).decode
    assert decode(opened(tmp_path).encode("hi")) == "say: hi<|im_end|>"
    assert decode(opened(tmp_path, raw=True).encode("hi")) == "hi<|im_end|>"


def test_an_adapter_from_elsewhere_generates_too(byte_base: Path, tmp_path: Path) -> None:
    """PEFT's two files say neither the rows' format nor, here, the task: the base does."""
    random_adapter(byte_base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}))
    said: list[str] = []
    generator = opened(tmp_path, say=said.append)
    assert generator.format == "pairs"
    assert len(said) == 1
    assert "prompts are taken as they are" in said[0]
    assert generator.complete([generator.encode("hi")], 1)[0].tokens > 0


def test_a_source_longer_than_the_encoder_is_refused_and_the_decoder_s_places_are_a_limit(
    tmp_path: Path,
) -> None:
    model, _ = translators.bart(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_2_SEQ_LM")
    config.base_model_name_or_path = str(tmp_path / "base")
    get_peft_model(model, config).save_pretrained(str(tmp_path / "run"))
    generator = opened(tmp_path / "run", Sampling(max_new_tokens=500, temperature=0))
    longest = generator.encode("red " * 63)
    assert generator.complete([longest], 1)[0].tokens <= 63
    assert generator.room(longest) == 63
    with pytest.raises(DataError, match="has 65 tokens, and the model takes 64 in all"):
        generator.encode("red " * 64)


# The same as PEFT.


def test_peft_loads_the_adapter_with_the_same_loss_and_writes_the_same_text(bart_run: Path) -> None:
    from peft import PeftModel

    base = AutoModelForSeq2SeqLM.from_pretrained(bart_run.parent / "base")
    theirs = PeftModel.from_pretrained(base, bart_run).eval()
    adapted = open_adapted(bart_run, nobody)
    rows = [row for (row,) in adapted.task.encode([Pair(**row) for row in sentences(8, seed=3)])]
    batch = adapted.task.collate(rows)
    with torch.no_grad():
        total, count = adapted.task.loss(adapted.model, batch)
        torch.testing.assert_close(total / count, theirs(**batch).loss, rtol=1e-5, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(bart_run)
    generator = opened(bart_run)
    for row in rows:
        ids = torch.as_tensor(row["input_ids"]).long().unsqueeze(0)
        written = theirs.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(written[0].tolist(), skip_special_tokens=True)
        assert generator.stream(row["input_ids"].tolist(), lambda piece: None).text == text


METHODS: dict[str, dict[str, Any]] = {
    "IA3": {},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 1},
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_train_and_generate_what_peft_s_do(
    method: str, byte_base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    rows = str(write_jsonl(tmp_path / "rows.jsonl", [{"source": "ab", "target": "ba"}] * 4))
    recipe = recipe_of(
        byte_base,
        adapter={"peft_type": method} | METHODS[method],
        data={"train": {"path": rows}, "eval": {"path": rows}},
        training={
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "learning_rate": 0.1,
            "eval_strategy": "epoch",
            "predict_with_generate": True,
            "generation_max_length": 6,
        },
    )
    assert train(recipe, say=nobody).outcome.last_eval["eval_chrf"] >= 0
    generator = opened(tmp_path / "run")
    sources = [generator.encode(text) for text in ("ab", "hello there")]
    alone = [generator.stream(ids, lambda piece: None) for ids in sources]
    assert generator.complete(sources, 2) == alone
    if method == "MULTITASK_PROMPT_TUNING":
        # PEFT trains a prompt before the decoder's tokens, too, and leaves it out when it generates.
        return
    base = AutoModelForSeq2SeqLM.from_pretrained(byte_base)
    theirs = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    ids = torch.tensor([sources[1]])
    mask = torch.ones_like(ids)
    written = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    text = generator.tokenizer.decode(written[0].tolist(), skip_special_tokens=True)
    assert alone[1].text == text.rstrip("\ufffd")


def test_the_number_of_beams_must_be_one_or_more() -> None:
    with pytest.raises(RecipeError, match="--num-beams must be at least 1"):
        Sampling(num_beams=0)
