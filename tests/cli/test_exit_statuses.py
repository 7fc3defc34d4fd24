"""Every exit status of the contract, each produced by the real command in a process of its own, as a CI job sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli import errors
from tests.run.adapters import change_tensors

ROOT = Path(__file__).parents[2]


class Job:
    """A folder with a recipe that trains, and the command in it."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = {
            "base_model": str(base),
            "task_type": "CAUSAL_LM",
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "rows.jsonl"}, "eval": 0.25, "max_length": 64},
            "training": {
                "output_dir": "run",
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "use_cpu": True,
            },
        }
        rows = ({"text": f"row {number}"} for number in range(16))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "recipe.yaml").write_text(json.dumps(self.recipe))
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "peftcli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)

    def run(self, *arguments: str, status: int) -> str:
        """What it says on standard error."""
        process = self.start(*arguments)
        _, said = process.communicate(timeout=180)
        assert process.returncode == status, said
        return said

    def train(self, *changes: str, status: int) -> str:
        return self.run(
            "train", "recipe.yaml", *(part for each in changes for part in ("--set", each)), status=status
        )


def done(job: Job) -> None:
    assert "done: 2 steps" in job.train(status=0)


def recipe(job: Job) -> None:
    assert "error: --set training.max_step=1" in job.train("training.max_step=1", status=2)


def usage(job: Job) -> None:
    assert "no such option" in job.run("train", "recipe.yaml", "--frobnicate", status=2)


def data(job: Job) -> None:
    (job.folder / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "rows.jsonl: row 2: broken JSON" in job.train(status=3)


def model(job: Job) -> None:
    assert "does not exist" in job.train("base_model=./nowhere", status=4)


def adapter(job: Job) -> None:
    job.train(status=0)
    change_tensors(
        job.folder / "run", lambda tensors: {name: t * float("nan") for name, t in tensors.items()}
    )
    assert "not finite" in job.run("inspect", "run", status=4)


def diverged(job: Job) -> None:
    changes = ("training.learning_rate=1e38", "training.max_steps=12", "training.max_grad_norm=0")
    assert "NaN or infinite" in job.train(*changes, status=5)


def gate(job: Job) -> None:
    changes = ("gates.eval_loss=< 0.001", "training.eval_strategy=steps", "training.eval_steps=2")
    assert "gate failed: eval_loss < 0.001" in job.train(*changes, status=6)
    assert "gate failed" in job.run("eval", "run", status=6)


def memory(job: Job) -> None:
    """A machine with a few hundred megabytes beyond what the program itself takes, and a batch that wants gigabytes."""
    text = "a" * 400
    (job.folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(4096)))
    limits = "import resource, runpy, sys, torch, transformers, accelerate, datasets; import torch._dynamo; "
    limits += "pages = int(open('/proc/self/statm').read().split()[0]); "
    limits += "top = pages * resource.getpagesize() + 1_200_000_000; "
    limits += "resource.setrlimit(resource.RLIMIT_AS, (top, top)); "
    limits += "sys.argv[0] = 'peftcli'; runpy.run_module('peftcli', run_name='__main__')"
    arguments = [
        "train",
        "recipe.yaml",
        "--set",
        "training.per_device_train_batch_size=3000",
        "--set",
        "data.eval=null",
    ]
    arguments += ["--set", "data.max_length=512"]
    process = subprocess.run(
        [sys.executable, "-c", limits, *arguments],
        cwd=job.folder, env=job.environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert process.returncode == 7, process.stderr
    assert "out of memory; try training.per_device_train_batch_size: 1500" in process.stderr


def hub(job: Job) -> None:
    assert "the Hub could not be reached" in job.train("base_model=org/name", status=8)


def interrupted(job: Job) -> None:
    process = job.start(
        "train", "recipe.yaml", "--set", "training.max_steps=100000", "--set", "training.logging_steps=1"
    )
    waited = time.monotonic() + 120
    metrics = job.folder / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < waited
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert list((job.folder / "run").glob("checkpoint-*/manifest.json"))


STATUSES: dict[str, tuple[int, Callable[[Job], None]]] = {
    "0: done": (0, done),
    "2: recipe": (2, recipe),
    "2: usage": (2, usage),
    "3: data": (3, data),
    "4: model": (4, model),
    "4: adapter": (4, adapter),
    "5: diverged": (5, diverged),
    "6: a gate failed": (6, gate),
    "7: out of memory": (7, memory),
    "8: the Hub": (8, hub),
    "130: interrupted": (130, interrupted),
}


@pytest.mark.slow
@pytest.mark.parametrize("produce", [how for _, how in STATUSES.values()], ids=STATUSES)
def test_the_command_ends_with_the_status(
    produce: Callable[[Job], None], tmp_path: Path, tiny_base: Path
) -> None:
    produce(Job(tmp_path, tiny_base))


def test_every_status_of_the_error_tree_is_in_the_table() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    told = {kind.exit_status for kind in kinds if issubclass(kind, errors.PeftcliError)} - {1}
    assert told | {0} == {status for status, _ in STATUSES.values()}
