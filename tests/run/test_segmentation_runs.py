"""Scenes from a recipe to masks in a folder, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from peftcli.cli.app import run as command
from tests.tasks.scenes import NAMES, NO_CLASS, write_finder, write_scenes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SegFormer that tells shapes from the ground, a recipe that teaches it their kinds, and the run."""
    folder = tmp_path_factory.mktemp("masks")
    base = write_finder(folder / "base", 60, hidden_sizes=[16, 32, 32, 64])
    write_scenes(folder, "train", 96, seed=1)
    write_scenes(folder, "eval", 24, seed=2)
    recipe = {
        "base_model": str(base),
        "task_type": "SEMANTIC_SEG",
        "task": {"labels": NAMES},
        "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "eval": {"path": str(folder / "eval.jsonl")},
        },
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 8,
            "per_device_train_batch_size": 8,
            "learning_rate": 1.0e-2,
            "eval_strategy": "epoch",
            "use_cpu": True,
        },
        "gates": {"eval_mean_iou": "> 0.6"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command(["train", str(folder / "recipe.yaml")]) == 0
    return folder


def predicted(project: Path, rows: Path, answers: Path) -> int:
    options = ["--adapter", str(project / "run"), "--input", str(rows), "--output", str(answers)]
    return command(["predict", *options])


@pytest.mark.slow
def test_kinds_are_learnt_and_evaluated_beside_the_base(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert command(["eval", str(project / "run"), "--json"]) == 0
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert found["adapter"]["eval_mean_iou"] > max(0.6, found["base"]["eval_mean_iou"] + 0.3)
    assert found["adapter"]["eval_pixel_accuracy"] > found["base"]["eval_pixel_accuracy"]
    assert "arning" not in printed.err


@pytest.mark.slow
def test_predicted_masks_are_pngs_of_the_pictures_size_and_are_rows_again(
    project: Path, tmp_path: Path
) -> None:
    rows = write_scenes(tmp_path, "larger", 6, seed=9, side=(48, 64))
    answers = tmp_path / "answers.jsonl"
    assert predicted(project, rows, answers) == 0
    right = total = 0
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        found = PIL.Image.open(tmp_path / row["prediction"]["mask"])
        true = np.asarray(PIL.Image.open(tmp_path / row["mask"]))
        assert (found.mode, found.size) == ("P", (64, 48))
        assert np.unique(found).max() < len(NAMES)
        shares = row["prediction"]["classes"]
        assert set(shares) <= set(NAMES)
        assert sum(shares.values()) == pytest.approx(1)
        right += int((np.asarray(found) == true)[true != NO_CLASS].sum())
        total += int((true != NO_CLASS).sum())
    assert right / total > 0.8
    assert len([*(tmp_path / "answers").iterdir()]) == 6


@pytest.mark.slow
def test_what_stands_where_masks_would_go_is_never_lost(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = write_scenes(tmp_path, "scenes", 2, seed=9)
    before = sorted(path.name for path in (tmp_path / "scenes").iterdir())
    # The folder of masks would be that of the pictures.
    answers = tmp_path / "scenes.json"
    assert predicted(project, rows, answers) == 2
    assert "scenes is where each row's mask goes, and there is something" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "scenes").iterdir()) == before
    assert not answers.exists()
    assert command(["predict", "--adapter", str(project / "run"), "--input", str(rows)]) == 2
    assert "--output: each row has a mask, a file" in capfd.readouterr().err


@pytest.mark.slow
def test_of_broken_rows_no_mask_is_written(project: Path, tmp_path: Path) -> None:
    rows = write_scenes(tmp_path, "scenes", 2, seed=9)
    (tmp_path / "scenes" / "1.png").write_bytes(b"no picture")
    answers = tmp_path / "answers.jsonl"
    assert predicted(project, rows, answers) == 3
    assert not answers.exists()
    assert not (tmp_path / "answers").exists()


@pytest.mark.slow
def test_a_merged_model_is_the_adapted_one_and_knows_the_names(project: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSemanticSegmentation

    merged = tmp_path / "merged"
    assert command(["merge", "--adapter", str(project / "run"), "--output", str(merged), "--verify"]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(merged)
    assert [model.config.id2label[at] for at in range(3)] == NAMES
    config = json.loads((project / "run" / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert config["modules_to_save"] == ["decode_head"]


@pytest.mark.slow
def test_the_recipe_is_proved_by_a_smoke_run_and_has_a_memory_plan(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = str(project / "recipe.yaml")
    assert command(["train", recipe, "--smoke"]) == 0
    capfd.readouterr()
    assert command(["check", recipe, "--data", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["memory"]["parts"]["activations"] > 0
