"""Recordings from a recipe to texts in a file, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.cli.app import run as command
from tests.tasks.test_speech import model_of, task_of, write_base
from tests.tasks.tones import taught, write_songs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper that writes tones in one language, a recipe that teaches it another, and the run."""
    folder = tmp_path_factory.mktemp("speech")
    base = write_base(folder / "base", d_model=64)
    model = model_of(base)
    taught(model, task_of(base), steps=500, learning_rate=4e-3).save_pretrained(base)
    write_songs(folder, "train", 192, seed=1)
    write_songs(folder, "eval", 24, seed=2)
    recipe: dict[str, Any] = {
        "base_model": str(base),
        "task_type": "SPEECH_SEQ_2_SEQ_LM",
        "task": {"language": "en"},
        "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "eval": {"path": str(folder / "eval.jsonl")},
        },
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 8,
            "per_device_train_batch_size": 16,
            "learning_rate": 1.0e-2,
            "eval_strategy": "epoch",
            "predict_with_generate": True,
            "use_cpu": True,
        },
        "gates": {"eval_wer": "< 0.2"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert command(["train", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.mark.slow
def test_another_language_is_learnt_and_evaluated_beside_the_base(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command(["eval", str(project / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"]["eval_wer"] > 0.9
    assert found["adapter"]["eval_wer"] < 0.2
    assert found["adapter"]["eval_cer"] < 0.2
    assert found["adapter"]["eval_loss"] < found["base"]["eval_loss"]


@pytest.mark.slow
def test_predictions_are_texts_and_rows_need_none(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (project / "eval.jsonl").read_text().splitlines()]
    path = project / "unsaid.jsonl"
    path.write_text("".join(json.dumps({"audio": row["audio"]}) + "\n" for row in rows), encoding="utf-8")
    answers = tmp_path / "answers.jsonl"
    capfd.readouterr()
    status = command(
        ["predict", "--adapter", str(project / "run"), "--input", str(path), "--output", str(answers)]
    )
    assert status == 0
    assert "Passing `generation_config`" not in capfd.readouterr().err
    found = [json.loads(line)["prediction"]["text"] for line in answers.read_text().splitlines()]
    right = sum(text == row["text"] for text, row in zip(found, rows, strict=True))
    assert right > len(rows) * 0.6


@pytest.mark.slow
def test_the_adapter_names_no_task_of_pefts_and_its_processor_lies_beside_it(project: Path) -> None:
    config = json.loads((project / "run" / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert (project / "run" / "processor_config.json").is_file()


@pytest.mark.slow
def test_a_merged_model_is_the_adapted_one(project: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert command(["merge", "--adapter", str(project / "run"), "--output", str(merged), "--verify"]) == 0
    assert model_of(merged).config.model_type == "whisper"
