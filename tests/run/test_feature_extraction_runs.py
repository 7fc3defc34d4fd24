"""Embeddings from the recipe to vectors in a file, through the real commands; their adapters are PEFT's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from peftcli import AutoPeftModelForFeatureExtraction
from peftcli.cli.app import run as command
from peftcli.data.example import Similar
from peftcli.errors import ModelError
from peftcli.run.adapted import open_adapted
from peftcli.run.train import train
from tests.data.writers import write_jsonl
from tests.tasks.animals import BASES, CLASSES, animals, decoder_base, recipe_of, trained


def nobody(_: str) -> None:
    """Takes what is said."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("similar"), "similar", gates={"eval_recall_at_1": ">= 0.9"})


def test_a_rule_is_learnt_and_evaluated_beside_its_base(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["eval_recall_at_1"] >= 0.9 > found["base"]["eval_recall_at_1"]
    assert found["adapter"]["eval_mrr"] > found["base"]["eval_mrr"]
    assert found["adapter"]["eval_loss"] < found["base"]["eval_loss"]
    assert found["adapter"]["eval_recall_at_5"] == 1  # of three positives
    assert found["gates"] == {"eval_recall_at_1 >= 0.9": True}


def test_a_merged_model_is_the_adapted_one(run: Path, tmp_path: Path) -> None:
    assert command(["merge", "--adapter", str(run), "--output", str(tmp_path / "merged"), "--verify"]) == 0


@pytest.mark.parametrize(
    ("kind", "make", "metric"),
    [("scored", BASES["encoder"], "eval_spearman"), ("similar", decoder_base, "eval_recall_at_1")],
    ids=["scores", "decoder"],
)
def test_scores_are_learnt_and_decoders_learn_too(
    kind: str, make: Any, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path, kind, make)
    capsys.readouterr()
    assert command(["eval", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"][metric] >= 0.6 > found["base"][metric]


def test_a_text_s_vector_lies_nearest_to_that_of_its_kind(run: Path, tmp_path: Path) -> None:
    texts = [f"the {animal} eats" for animal in CLASSES] + ["mammal", "bird", "fish"]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    output = tmp_path / "out.jsonl"
    assert command(["predict", "--adapter", str(run), "--input", str(rows), "--output", str(output)]) == 0
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in answers] == texts
    vectors = np.asarray([row["prediction"]["embedding"] for row in answers])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, rel=1e-5)
    nearest = (vectors[:9] @ vectors[9:].T).argmax(1)
    right = [texts[9 + at] == kind for at, kind in zip(nearest, CLASSES.values(), strict=True)]
    assert sum(right) >= 8


def test_peft_loads_the_adapter_with_the_same_outputs(run: Path) -> None:
    import peft

    adapted = open_adapted(run, nobody)
    batch = adapted.task.collate(
        [row for (row,) in adapted.task.encode([Similar("the owl eats"), Similar("cod")])]
    )
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["task_type"], config["modules_to_save"]) == ("FEATURE_EXTRACTION", None)
    # Without the layer for BERT's own kind of pooling, which is not trained; with it PEFT warns of the lack.
    base = AutoModel.from_pretrained(run.parent / "base", add_pooling_layer=False)
    models = [
        peft.PeftModelForFeatureExtraction.from_pretrained(base, run).eval(),
        peft.AutoPeftModelForFeatureExtraction.from_pretrained(run, add_pooling_layer=False).eval(),
        AutoPeftModelForFeatureExtraction.from_pretrained(run, add_pooling_layer=False).eval(),
    ]
    with pytest.warns(UserWarning, match=r"missing adapter keys .*pooler"):
        models.append(peft.AutoPeftModelForFeatureExtraction.from_pretrained(run).eval())
    with torch.no_grad():
        ours = adapted.model(**batch).last_hidden_state
        for model in models:
            torch.testing.assert_close(ours, model(**batch).last_hidden_state)


def test_what_the_card_says_loads_the_adapter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})


def test_check_tells_what_a_positive_is_told_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command(["check", "--data", str(run.parent / "recipe.yaml")]) == 0
    told = capsys.readouterr().err
    assert "all negatives: 16 rows, of one process" in told
    assert "note      pooling: mean" in told
    assert "negative length" not in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no pooling.json"),
        ("[]", "no pooling.json"),
        ('{"pooling": "max", "normalize": true}', "known"),
    ],
)
def test_an_adapter_that_does_not_say_how_it_pools_is_refused(
    text: str | None, says: str, run: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "pooling.json").unlink()
    if text is not None:
        (broken / "pooling.json").write_text(text)
    with pytest.raises(ModelError, match=says):
        open_adapted(broken, nobody)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_prompts_belong_to_no_text_and_padding_changes_nothing(method: str, tmp_path: Path) -> None:
    BASES["encoder"](tmp_path / "base")
    data = {"train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", animals("similar", 16, seed=0)))}}
    adapter = {"peft_type": method, "num_virtual_tokens": 3}
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 0.1}
    recipe = recipe_of(tmp_path / "base", "FEATURE_EXTRACTION", adapter=adapter, data=data, training=training)
    train(recipe, say=nobody)
    adapted = open_adapted(tmp_path / "run", nobody)
    rows = [row for (row,) in adapted.task.encode([Similar("the old owl eats"), Similar("cod")])]
    with torch.no_grad():
        together = adapted.task.predict(adapted.model, adapted.task.collate(rows))
        alone = [adapted.task.predict(adapted.model, adapted.task.collate([row]))[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)
