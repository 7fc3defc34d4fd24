"""Answers from the recipe to predictions, through the real commands; the adapters are PEFT's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForQuestionAnswering

from peftcli import AutoPeftModelForQuestionAnswering
from peftcli.cli.app import run as command
from peftcli.data.example import Question
from peftcli.data.prepare import prepare_rows
from peftcli.errors import ModelError, RecipeError
from peftcli.run.adapted import open_adapted
from peftcli.run.evaluate import evaluate
from peftcli.run.train import train
from peftcli.train.feed import eval_batches, on_device
from tests.data.writers import write_jsonl
from tests.tasks.animals import CLASSES, recipe_of
from tests.tasks.stories import KINDS, asking_base, stories, trained


def nobody(_: str) -> None:
    """Takes what is said."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on stories of two windows, of which one in four has no answer."""
    folder = tmp_path_factory.mktemp("stories")
    return trained(folder, none=0.25, gates={"eval_f1": ">= 0.8"})


def predicted(run: Path, folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path, output = write_jsonl(folder / "in.jsonl", rows), folder / "out.jsonl"
    assert command(["predict", "--adapter", str(run), "--input", str(path), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_a_rule_is_learnt_and_evaluated_beside_its_base(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["adapter"]) == ["eval_loss", "eval_exact_match", "eval_f1"]
    assert found["rows"] == 80
    assert found["adapter"]["eval_exact_match"] >= 0.7
    assert 0.8 <= found["adapter"]["eval_f1"] <= 1
    assert found["base"]["eval_f1"] < 0.4
    assert found["gates"] == {"eval_f1 >= 0.8": True}


def test_predictions_stand_in_the_context_where_they_say(run: Path, tmp_path: Path) -> None:
    rows = stories(40, seed=1, none=0.25)
    answers = predicted(run, tmp_path, rows)
    assert [{**answer, "prediction": 0} for answer in answers] == [{**row, "prediction": 0} for row in rows]
    right = 0
    for row, said in zip(rows, (answer["prediction"] for answer in answers), strict=True):
        assert list(said) == ["answer", "start", "end", "score"]
        assert 0 < said["score"] <= 1
        if said["answer"]:
            assert row["context"][said["start"] : said["end"]] == said["answer"]
        else:
            assert (said["start"], said["end"]) == (None, None)
        right += said["answer"] == (row["answers"]["text"] or [""])[0]
    assert right >= 28
    assert {bool(answer["prediction"]["answer"]) for answer in answers} == {True, False}


def test_predictions_are_those_that_were_evaluated(run: Path, tmp_path: Path) -> None:
    from torchmetrics.functional.text import squad

    rows = stories(40, seed=1, none=0.25)
    texts = [answer["prediction"]["answer"] for answer in predicted(run, tmp_path, rows)]
    theirs = squad(
        [{"id": str(at), "prediction_text": text} for at, text in enumerate(texts)],
        [
            {"id": str(at), "answers": {"text": row["answers"]["text"] or [""], "answer_start": [0]}}
            for at, row in enumerate(rows)
        ],
    )
    found = evaluate(run, None, say=nobody).adapter
    assert found["eval_exact_match"] == pytest.approx(float(theirs["exact_match"]) / 100)
    assert found["eval_f1"] == pytest.approx(float(theirs["f1"]) / 100)


def test_an_answer_is_found_in_any_window_of_a_long_context(run: Path, tmp_path: Path) -> None:
    """Contexts of a dozen windows, the answer in one of them."""
    rows = []
    for at, (animal, kind) in enumerate(CLASSES.items()):
        told = ["the", "my", "sits", "eats", "runs"] * 24
        told.insert(13 * at, f"old {animal}")
        rows.append({"question": kind, "context": " ".join(told)})
    answers = predicted(run, tmp_path, rows)
    right = [
        answer["prediction"]["answer"] == f"old {animal}"
        for answer, animal in zip(answers, CLASSES, strict=True)
    ]
    assert sum(right) >= 7


def test_batches_and_processes_have_no_part_in_the_metrics(run: Path) -> None:
    one, other = (evaluate(run, None, batch_size=size, say=nobody) for size in (3, 40))
    assert one.adapter == pytest.approx(other.adapter)
    assert one.base == pytest.approx(other.base)
    adapted = open_adapted(run, nobody)
    source, data, task = (
        adapted.source(str(run.parent / "eval.jsonl")),
        adapted.recipe.data,
        adapted.task,
    )
    rows, _ = prepare_rows([source], data, encoder=task.encoder(), model_max_length=task.max_input())
    shares: list[Any] = []
    with torch.no_grad():
        for rank in range(2):
            batches = eval_batches(rows, task, adapted.recipe.training, processes=2, rank=rank, pin=False)
            device = Accelerator(cpu=True).device
            shares.append(
                [
                    each
                    for batch in batches
                    for each in task.metrics(adapted.model, on_device(batch, device)).records
                ]
            )
    # Windows of one example stand on both sides.
    assert {record[0] for record in shares[0]} & {record[0] for record in shares[1]}
    found = task.score(shares[1] + shares[0])
    assert found["f1"] == pytest.approx(one.adapter["eval_f1"])
    assert found["exact_match"] == pytest.approx(one.adapter["eval_exact_match"])
    assert 0 <= task.score(shares[0])["f1"] <= 1


def test_whether_there_may_be_no_answer_is_kept_beside_the_adapter(run: Path, tmp_path: Path) -> None:
    content = json.loads((run / "answers.json").read_text(encoding="utf-8"))
    assert content == {"handle_impossible_answer": True}
    for text, says in (
        (None, "no answers.json that can be read"),
        ("[]", "no answers.json that can be read"),
        ('{"handle_impossible_answer": 1}', "must be true or false"),
    ):
        broken = Path(shutil.copytree(run, tmp_path / "broken", dirs_exist_ok=True))
        (broken / "answers.json").unlink()
        if text is not None:
            (broken / "answers.json").write_text(text)
        with pytest.raises(ModelError, match=says):
            open_adapted(broken, nobody)


def test_without_such_rows_every_question_gets_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, training={"num_train_epochs": 1})
    assert "note      a prediction is never empty" in capsys.readouterr().err
    answers = predicted(run, tmp_path, [{"question": kind, "context": "the my runs"} for kind in KINDS])
    assert all(answer["prediction"]["answer"] for answer in answers)


@torch.no_grad()
def test_peft_loads_the_adapter_with_the_same_outputs(run: Path) -> None:
    import peft

    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["task_type"], config["modules_to_save"]) == ("QUESTION_ANS", ["qa_outputs"])
    adapted = open_adapted(run, nobody)
    examples = [Question("bird", "the old owl sits", None), Question("fish", "cod", None)]
    batch = adapted.task.collate([row for (row,) in adapted.task.encode(examples)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    base = AutoModelForQuestionAnswering.from_pretrained(run.parent / "base")
    theirs = [
        peft.PeftModelForQuestionAnswering.from_pretrained(base, run).eval(),
        peft.AutoPeftModelForQuestionAnswering.from_pretrained(run).eval(),
    ]
    alone = AutoPeftModelForQuestionAnswering.from_pretrained(run).eval()
    for model in (alone, *(each.base_model for each in theirs)):
        same_logits(adapted.model(**inputs), model(**inputs))
    # PEFT's own forward for this task leaves token types out on the way to the base.
    del inputs["token_type_ids"]
    for model in (alone, *theirs):
        same_logits(adapted.model(**inputs), model(**inputs))


def same_logits(one: Any, other: Any) -> None:
    torch.testing.assert_close(one.start_logits, other.start_logits)
    torch.testing.assert_close(one.end_logits, other.end_logits)


def test_a_merged_model_is_the_adapted_one(run: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert command(["merge", "--adapter", str(run), "--output", str(merged), "--verify"]) == 0
    assert type(AutoModelForQuestionAnswering.from_pretrained(merged)).__name__ == "BertForQuestionAnswering"


def test_what_the_card_says_loads_the_adapter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})


def test_check_tells_of_windows_and_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command(["check", "--data", str(run.parent / "recipe.yaml")]) == 0
    told = capsys.readouterr().err
    assert "train     512 rows" in told
    assert "note      296 of 296 contexts are longer than 20 tokens with their questions: they are" in told
    assert "questions have no answer\n" in told
    assert "note      predictions may be empty" in told
    assert "a step" in told  # the memory plan


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_prompts_stand_before_the_question(method: str, tmp_path: Path) -> None:
    """Windows fill the model: its 512 places have the virtual tokens, too."""
    asking_base(tmp_path / "base")
    rows = [*stories(15, seed=0), *stories(1, seed=0, words=600)]
    data = {"train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}}
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 0.1}
    adapter = {"peft_type": method, "num_virtual_tokens": 3}
    recipe = recipe_of(tmp_path / "base", "QUESTION_ANS", adapter=adapter, data=data, training=training)
    train(recipe, say=nobody)
    adapted = open_adapted(tmp_path / "run", nobody)
    examples = [Question("bird", "the old owl sits", None), Question("fish", "cod", None)]
    rows = [row for (row,) in adapted.task.encode(examples)]
    with torch.no_grad():
        together = adapted.task.predict(adapted.model, adapted.task.collate(rows))
        alone = [adapted.task.predict(adapted.model, adapted.task.collate([row]))[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert one.odds == pytest.approx(other.odds, abs=1e-5)


def test_streamed_rows_are_trained_on(tmp_path: Path) -> None:
    asking_base(tmp_path / "base")
    path = str(write_jsonl(tmp_path / "rows.jsonl", stories(20, seed=0)))
    sections = {
        "data": {"train": {"path": path}, "max_length": 20, "streaming": True},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 3},
    }
    with pytest.raises(RecipeError, match=r"task.handle_impossible_answer"):
        train(recipe_of(tmp_path / "base", "QUESTION_ANS", **sections), say=nobody)
    recipe = recipe_of(
        tmp_path / "base", "QUESTION_ANS", task={"handle_impossible_answer": False}, **sections
    )
    assert train(recipe, say=nobody).outcome.global_step == 3


def test_settings_that_have_no_meaning_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("base", "QUESTION_ANS")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    for setting in ("data.overflow=truncate", "data.packing=true", "data.loss_on=all"):
        capsys.readouterr()
        assert command(["check", str(path), "--set", setting]) == 2
        assert "has no meaning for QUESTION_ANS; leave it out" in capsys.readouterr().err
