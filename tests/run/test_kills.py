"""A run that is killed at any moment and resumed ends as if it had never been killed: in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.run.test_train import ENVIRONMENT, ROOT, WORDS

KILLS = 7
TWICE = {"two processes"}
# What a clock or the machine decides.
MEASURED = {"tokens_per_second", "peak_memory_bytes"}
ADALORA = {
    "peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "lora_dropout": 0.1
}  # fmt: skip
RUNS = {
    "accumulation, dropout and a cosine": {
        "training": {"gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    },
    "packed rows": {"data": {"packing": True, "max_length": 48}},
    "a stream": {
        "data": {"streaming": True, "eval": {"path": "rows.jsonl"}},
        "training": {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 4},
    },
    "AdaLoRA's schedule": {"adapter": ADALORA},
    "the best checkpoint": {
        "training": {
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "num_train_epochs": 4,
            "load_best_model_at_end": True,
            "save_total_limit": 2,
            "learning_rate": 0.05,
        },
    },
}


RUNS["two processes"] = {"training": {"gradient_accumulation_steps": 2, "ddp_timeout": 60}}


def write_project(folder: Path, base: Path, changes: dict[str, dict[str, object]]) -> None:
    rows = [{"prompt": f"say {word} {i}", "completion": f" {word}!"} for i, word in enumerate(WORDS * 3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, dict[str, object]] = {
        "adapter": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "data": {"train": {"path": "rows.jsonl", "type": "completion"}, "eval": 0.25, "max_length": 64},
        "training": {
            "output_dir": "out",
            "learning_rate": 0.01,
            "per_device_train_batch_size": 2,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
        },
    }
    for section, given in changes.items():
        recipe[section] = given if section == "adapter" else {**recipe[section], **given}
    whole = {"base_model": str(base), "task_type": "CAUSAL_LM", **recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")


def log(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_in_the_bytes_of_the_one_that_was_not(
    name: str, tmp_path: Path, tiny_base: Path
) -> None:
    write_project(tmp_path, tiny_base, RUNS[name])
    seed = str([*RUNS].index(name))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.run.killer",
            str(tmp_path),
            str(KILLS),
            seed,
            "2" if name in TWICE else "1",
        ],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout)
    assert sum(count.values()) == KILLS
    assert count["saving"] > 0
    straight = tmp_path / "straight"
    for killed in tmp_path.glob("out-*"):
        assert log(killed) == log(straight)
        weights = "adapter_model.safetensors"
        assert (killed / weights).read_bytes() == (straight / weights).read_bytes()
        assert not [*killed.glob(".*")]
