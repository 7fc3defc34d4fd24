"""Pictures from a recipe to label names in a file, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from peftcli.cli.app import run as command
from tests.tasks.digits import write_digits, write_turner


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT that tells how digits are turned, a recipe that teaches it which they are, and the run."""
    folder = tmp_path_factory.mktemp("images")
    base = write_turner(folder / "base", steps=100, hidden_size=64)
    write_digits(folder, "train", 0, 480)
    write_digits(folder, "eval", 480, 100)
    recipe = {
        "base_model": str(base),
        "task_type": "IMAGE_CLS",
        "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "eval": {"path": str(folder / "eval.jsonl")},
        },
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 5,
            "per_device_train_batch_size": 16,
            "learning_rate": 5.0e-3,
            "eval_strategy": "epoch",
            "use_cpu": True,
        },
        "gates": {"eval_accuracy": "> 0.5"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command(["train", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.mark.slow
def test_digits_are_learnt_and_evaluated_beside_the_base(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert command(["eval", str(project / "run"), "--json"]) == 0
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert found["base"]["eval_accuracy"] < 0.3
    assert found["adapter"]["eval_accuracy"] > 0.5
    assert found["adapter"]["eval_f1"] > found["base"]["eval_f1"] + 0.3
    assert "torchvision" not in printed.err
    assert "id2label" not in printed.err


@pytest.mark.slow
def test_predictions_are_names_and_rows_need_no_label(project: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (project / "eval.jsonl").read_text().splitlines()]
    path = project / "unknown.jsonl"
    path.write_text("".join(json.dumps({"image": row["image"]}) + "\n" for row in rows), encoding="utf-8")
    answers = tmp_path / "answers.jsonl"
    options = ["--adapter", str(project / "run"), "--input", str(path), "--output", str(answers)]
    assert command(["predict", *options]) == 0
    found = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    right = sum(each["label"] == row["label"] for each, row in zip(found, rows, strict=True))
    assert right > len(rows) * 0.5
    assert all(0 <= each["score"] <= 1 for each in found)


@pytest.mark.slow
def test_the_adapter_names_no_task_of_pefts_and_what_it_needs_lies_beside_it(project: Path) -> None:
    config = json.loads((project / "run" / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert config["modules_to_save"] == ["classifier"]
    assert "classifier" not in config["target_modules"]
    assert (project / "run" / "preprocessor_config.json").is_file()
    labels = json.loads((project / "run" / "labels.json").read_text())["id2label"]
    assert labels["7"] == "digit 7"


@pytest.mark.slow
def test_a_merged_model_is_the_adapted_one_and_knows_the_names(project: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    merged = tmp_path / "merged"
    assert command(["merge", "--adapter", str(project / "run"), "--output", str(merged), "--verify"]) == 0
    rows = [json.loads(line) for line in (project / "eval.jsonl").read_text().splitlines()][:20]
    classify = pipeline("image-classification", str(merged), device="cpu")
    answers = tmp_path / "answers.jsonl"
    options = ["--input", str(project / "eval.jsonl"), "--output", str(answers)]
    assert command(["predict", "--adapter", str(project / "run"), *options]) == 0
    ours = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    for row, mine in zip(rows, ours, strict=False):
        theirs = classify(str(project / row["image"]), top_k=1)[0]
        assert theirs["label"] == mine["label"]
        assert theirs["score"] == pytest.approx(mine["score"], abs=1e-4)


@pytest.mark.slow
def test_the_recipe_is_proved_by_a_smoke_run_and_has_a_memory_plan(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = str(project / "recipe.yaml")
    assert command(["train", recipe, "--smoke"]) == 0
    capfd.readouterr()
    assert command(["check", recipe, "--data", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["memory"]["parts"]["activations"] > 0


@pytest.mark.slow
def test_rows_that_hold_their_pictures_come_out_with_their_names(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (project / "eval.jsonl").read_text().splitlines()][:3]
    held = [{"bytes": (project / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
    pq.write_table(pa.table({"image": held}), tmp_path / "rows.parquet")
    options = ["--adapter", str(project / "run"), "--input", str(tmp_path / "rows.parquet")]
    capfd.readouterr()
    assert command(["predict", *options]) == 0
    printed = capfd.readouterr()
    assert "3 rows hold files" in printed.err
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in found] == [{"bytes": None, "path": row["image"]} for row in rows]
    assert all(row["prediction"]["label"].startswith("digit ") for row in found)
