"""Classification from the recipe to predictions, through the real commands; its adapters are PEFT's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from peftcli import AutoPeftModelForSequenceClassification
from peftcli.cli.app import run as command
from peftcli.data.example import Labelled
from peftcli.errors import AdapterError, ModelError, RecipeError
from peftcli.run.adapted import open_adapted
from peftcli.run.evaluate import evaluate
from peftcli.run.train import train
from tests.data.writers import write_jsonl
from tests.tasks.animals import BASES, animals, decoder_base, encoder_base, recipe_of, trained


def nobody(_: str) -> None:
    """Takes what is said."""


# From the recipe to predictions.


KINDS: dict[str, tuple[str, Any]] = {
    "single": ("eval_accuracy", encoder_base),
    "pair": ("eval_accuracy", encoder_base),
    "multi": ("eval_f1", encoder_base),
    "regression": ("eval_pearson", encoder_base),
    "decoder": ("eval_accuracy", decoder_base),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_is_learnt_evaluated_and_predicted(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric, make = KINDS[kind]
    run = trained(tmp_path, kind, make, gates={metric: ">= 0.9"})
    capsys.readouterr()
    assert command(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"][metric] >= 0.9 > found["base"][metric]
    assert found["adapter"]["eval_loss"] < found["base"]["eval_loss"]
    assert found["gates"] == {f"{metric} >= 0.9": True}
    output = tmp_path / "out.jsonl"
    rows = str(tmp_path / "eval.jsonl")
    assert command(["predict", "--adapter", str(run), "--input", rows, "--output", str(output)]) == 0
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in answers] == animals(
        kind, 40, seed=1
    )
    right = [_right(kind, row["label"], row["prediction"]) for row in answers]
    assert sum(right) >= 30


def _right(kind: str, label: Any, prediction: dict[str, Any]) -> bool:
    """Whether a prediction says what the row says, in the form that its kind has."""
    if kind == "regression":
        assert list(prediction) == ["label"]
        return abs(prediction["label"] - label) < 0.5
    if kind == "multi":
        assert list(prediction["scores"]) == ["bird", "fish", "mammal"]
        assert prediction["labels"] == [name for name, score in prediction["scores"].items() if score > 0.5]
        return prediction["labels"] == label
    assert 1 / 3 <= prediction["score"] <= 1
    return prediction["label"] == label


@pytest.fixture(scope="module")
def single_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has kept its best evaluation by accuracy."""
    best = {"metric_for_best_model": "accuracy", "load_best_model_at_end": True, "save_strategy": "epoch"}
    return trained(tmp_path_factory.mktemp("single"), "single", training=best)


def test_the_best_model_is_that_of_the_greatest_accuracy(single_run: Path) -> None:
    lines = (single_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if "eval_accuracy" in record]
    greatest = max(record["eval_accuracy"] for record in found)
    first = next(record for record in found if record["eval_accuracy"] == greatest)
    state = json.loads((single_run / "checkpoint-96" / "trainer_state.json").read_text(encoding="utf-8"))
    assert (state["best_metric"], state["best_global_step"]) == (greatest, first["step"])
    assert evaluate(single_run, None, say=nobody).adapter["eval_accuracy"] == greatest


def test_a_metric_that_is_never_evaluated_is_refused_before_training(
    single_run: Path, tmp_path: Path
) -> None:
    folder = single_run.parent
    data = {name: {"path": str(folder / f"{name}.jsonl")} for name in ("train", "eval")}
    training = {"output_dir": str(tmp_path / "run"), "eval_strategy": "epoch"}
    recipe = recipe_of(folder / "base", data=data, training=training, gates={"eval_acc": "> 0.5"})
    with pytest.raises(RecipeError, match=r"gates.eval_acc: there is no 'eval_acc'; did you mean 'eval_acc"):
        train(recipe, say=nobody)


def test_other_batches_give_the_same_metrics(single_run: Path) -> None:
    one, other = (evaluate(single_run, None, batch_size=size, say=nobody) for size in (3, 40))
    assert one.adapter == pytest.approx(other.adapter)
    assert one.base == pytest.approx(other.base)


def test_labels_and_the_kind_of_problem_are_kept_beside_the_adapter(single_run: Path) -> None:
    content = json.loads((single_run / "labels.json").read_text(encoding="utf-8"))
    assert content == {
        "problem_type": "single_label_classification",
        "id2label": {"0": "bird", "1": "fish", "2": "mammal"},
    }
    assert open_adapted(single_run, nobody).model.config.id2label == {0: "bird", 1: "fish", 2: "mammal"}
    for text, says in (("{", "is not a file of labels"), (None, "has no labels.json")):
        broken = single_run.parent / f"broken-{text is None}"
        broken.mkdir()
        for path in single_run.iterdir():
            if path.is_file() and path.name != "labels.json":
                (broken / path.name).write_bytes(path.read_bytes())
        if text is not None:
            (broken / "labels.json").write_text(text)
        with pytest.raises(ModelError, match=says):
            open_adapted(broken, nobody)


def test_peft_loads_the_adapter_with_the_same_outputs(single_run: Path) -> None:
    from peft import PeftModelForSequenceClassification

    adapted = open_adapted(single_run, nobody)
    rows = [
        row
        for (row,) in adapted.task.encode(
            [Labelled("the owl eats", None, None), Labelled("cod", "cat", None)]
        )
    ]
    batch = adapted.task.collate(rows)
    base = AutoModelForSequenceClassification.from_pretrained(single_run.parent / "base", num_labels=3)
    theirs = PeftModelForSequenceClassification.from_pretrained(base, single_run).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted.model(**batch).logits, theirs(**batch).logits)
    config = json.loads((single_run / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["classifier", "score"]


def test_the_base_gets_the_labels_of_the_adapter_that_is_loaded_alone(
    single_run: Path, tmp_path: Path
) -> None:
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(single_run)
    assert loaded.config.id2label == {0: "bird", 1: "fish", 2: "mammal"}
    adapted = open_adapted(single_run, nobody)
    (row,) = adapted.task.encode([Labelled("the owl eats", None, None)])[0]
    batch = adapted.task.collate([row])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, adapted.model(**batch).logits)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((single_run / name).read_bytes())
    assert AutoPeftModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 3
    with pytest.raises(AdapterError, match="shape"):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)


def test_what_the_card_says_loads_the_adapter(single_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(single_run)
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})


def test_check_tells_the_labels_and_lengths(single_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command(["check", "--data", str(single_run.parent / "recipe.yaml")]) == 0
    told = capsys.readouterr().err
    assert "train     256 rows, 1,280 tokens; length min 5, median 5, p95 5, max 5" in told
    assert "note      single label classification, 3 labels: bird, fish, mammal" in told


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    BASES[request.param](folder)
    return folder


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_prompts_train_a_head_too_and_padding_changes_nothing(
    method: str, tmp_path: Path, base: Path
) -> None:
    data = {"train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", animals("single", 16, seed=0)))}}
    adapter = {"peft_type": method, "num_virtual_tokens": 3}
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 0.1}
    train(recipe_of(base, adapter=adapter, data=data, training=training), say=nobody)
    adapted = open_adapted(tmp_path / "run", nobody)
    texts = [Labelled(text, None, None) for text in ("the old owl eats", "cod")]
    rows = [row for (row,) in adapted.task.encode(texts)]
    with torch.no_grad():
        together = adapted.task.predict(adapted.model, adapted.task.collate(rows))
        alone = [adapted.task.predict(adapted.model, adapted.task.collate([row]))[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)
