"""The real command, in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def peftcli(tmp_path):
    """Runs `peftcli ARGUMENTS` in an empty folder and gives the finished process, its output as text."""

    def run(*arguments, check=None, **options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
        options = {"cwd": tmp_path, "capture_output": True, "encoding": "utf-8", **options}
        done = subprocess.run([sys.executable, "-m", "peftcli", *arguments], env=environment, **options)
        if check is not None:
            assert done.returncode == check, done.stderr
        return done

    return run


@pytest.fixture
def recipe(tmp_path):
    """A recipe that is right, in that folder."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "base_model: org/model\ntask_type: CAUSAL_LM\n"
        "adapter: {peft_type: LORA, target_modules: all-linear}\n"
        "data:\n  train: {path: rows.jsonl}\n  eval: 0.25\ntraining:\n  output_dir: out\n",
        encoding="utf-8",
    )
    return path
