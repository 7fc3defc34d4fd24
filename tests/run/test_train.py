"""`peftcli train` as a user runs it, on a tiny base: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
WORDS = ["red", "green", "blue", "سلام", "été", "👩‍👩‍👧", "e\u0301", "東京"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "peftcli", *arguments]


def peftcli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, encoding="utf-8", cwd=cwd, env=ENVIRONMENT
    )


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Path:
    """A folder with rows and a recipe that trains in a second."""
    rows = [{"prompt": f"say {word} {i}", "completion": f" {word}!"} for i, word in enumerate(WORDS * 3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    write_recipe(tmp_path, tiny_base)
    return tmp_path


def write_recipe(folder: Path, base: Path, **training) -> None:
    recipe = {
        "base_model": str(base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "data": {"train": {"path": "rows.jsonl"}, "eval": 0.25, "max_length": 64},
        "training": {
            "output_dir": "runs/demo",
            "learning_rate": 0.01,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            **training,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def test_a_run_leaves_every_file_of_the_contract_and_says_what_it_read(project: Path) -> None:
    done = peftcli("train", "recipe.yaml", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    run = project / "runs" / "demo"
    left = {path.name for path in run.iterdir()}
    assert left >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "recipe.lock.yaml",
        "metrics.jsonl",
        "loss.svg",
        "tokenizer.json",
        "checkpoint-5",
        "checkpoint-10",
    }
    assert not [name for name in left if name.endswith((".tmp", ".bin", ".pt"))]
    assert "18 rows" in done.stderr
    assert "6 rows" in done.stderr
    assert "guessed from the columns prompt, completion" in done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 10
    assert result["metrics"].keys() >= {"eval_loss", "eval_accuracy"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    names = {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_memory_bytes"
    }  # fmt: skip
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 11))
    assert all(line.keys() == names for line in trained)
    assert [line["step"] for line in lines if "eval_loss" in line] == [5, 10]
    assert trained[-1]["loss"] < trained[0]["loss"]
    lock = yaml.safe_load((run / "recipe.lock.yaml").read_text("utf-8"))
    assert lock["recipe"]["training"]["weight_decay"] == 0.0
    assert re.fullmatch(r"[0-9a-f]{64}", lock["data"]["train_sources"][0]["sha256"]["rows.jsonl"])
    assert lock["base"]["fingerprint"].startswith("sha256:")
    card = (run / "README.md").read_text("utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == lock["recipe"]["base_model"]
    assert "eval_loss" in card


def test_peft_loads_what_a_run_leaves_and_gives_the_logits_that_we_give(
    project: Path, tiny_base: Path
) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from peftcli.peft.model import PeftModel

    assert peftcli("train", "recipe.yaml", cwd=project).returncode == 0
    run = project / "runs" / "demo"
    ids = torch.arange(40).reshape(2, 20)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), run).eval()
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(run)).eval()
    bare = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-6)
        assert not torch.allclose(theirs(input_ids=ids).logits, bare(input_ids=ids).logits, atol=1e-3)


def test_a_folder_with_a_run_is_refused_unless_told_to_resume_or_to_overwrite(project: Path) -> None:
    assert peftcli("train", "recipe.yaml", cwd=project).returncode == 0
    again = peftcli("train", "recipe.yaml", cwd=project)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "--resume" in again.stderr
    assert "training.overwrite_output_dir=true" in again.stderr
    over = peftcli("train", "recipe.yaml", "--set", "training.overwrite_output_dir=true", cwd=project)
    assert over.returncode == 0, over.stderr


def test_the_same_recipe_gives_the_same_bytes_twice(project: Path) -> None:
    names = ("a", "b")
    for name in names:
        assert (
            peftcli("train", "recipe.yaml", "--set", f"training.output_dir={name}", cwd=project).returncode
            == 0
        )
    first, second = ((project / name / "adapter_model.safetensors").read_bytes() for name in names)
    assert first == second


@pytest.mark.slow
def test_a_run_that_is_terminated_saves_exits_130_and_resumes_to_the_same_bytes(
    project: Path, tiny_base: Path
) -> None:
    write_recipe(project, tiny_base, num_train_epochs=60)
    assert peftcli("train", "recipe.yaml", "--set", "training.output_dir=whole", cwd=project).returncode == 0
    run = project / "runs" / "demo"
    process = subprocess.Popen(
        command("train", "recipe.yaml"),
        cwd=project,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text("utf-8").count("\n") > 7):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors.splitlines()[-1]
    resumed = peftcli("train", "recipe.yaml", "--resume", cwd=project)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stderr
    assert (run / "adapter_model.safetensors").read_bytes() == (
        project / "whole" / "adapter_model.safetensors"
    ).read_bytes()


def test_resume_without_a_checkpoint_starts_from_the_start_and_says_so(project: Path) -> None:
    done = peftcli("train", "recipe.yaml", "--resume", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "starting from the start" in done.stderr


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(project: Path, tiny_base: Path) -> None:
    write_recipe(project, tiny_base, per_device_train_batch_size=4, use_cpu=True)
    settings = ["--set", "adapter.lora_dropout=0.0"]
    one = peftcli("train", "recipe.yaml", *settings, "--set", "training.output_dir=one", cwd=project)
    assert one.returncode == 0, one.stderr
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "peftcli",
    ]
    arguments = [
        "train", "recipe.yaml", *settings,
        "--set", "training.output_dir=two", "--set", "training.per_device_train_batch_size=2",
    ]  # fmt: skip
    two = subprocess.run(
        [*launch, *arguments], capture_output=True, encoding="utf-8", cwd=project, env=ENVIRONMENT
    )
    assert two.returncode == 0, two.stderr
    first = load_file(project / "one" / "adapter_model.safetensors")
    second = load_file(project / "two" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    # Adam's steps are of one size, however small a gradient is: what rounds otherwise shows.
    assert max((first[key] - second[key]).abs().max().item() for key in first) < 5e-5


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_started_with_a_part_of_the_base_is_written_for_the_base_as_it_is(
    project: Path, tiny_base: Path, start: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from peftcli import PeftModel

    settings = ["--set", f"adapter.init_lora_weights={start}", "--set", "training.max_steps=4"]
    done = peftcli("train", "recipe.yaml", *settings, cwd=project)
    assert done.returncode == 0, done.stderr
    run = project / "runs" / "demo"
    config = json.loads((run / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"], config["lora_alpha"]) == (True, 8, 16)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        trained = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_base), run / "checkpoint-4"
        )(input_ids=ids).logits
        # What a reader does that knows of no starts: W + (alpha / r) B A.
        plain = AutoModelForCausalLM.from_pretrained(tiny_base)
        tensors = load_file(run / "adapter_model.safetensors")
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                up = tensors[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                plain.get_submodule(name).weight += 2 * up @ down
        logits = plain(input_ids=ids).logits
    torch.testing.assert_close(logits, trained, atol=1e-4, rtol=1e-4)


def test_a_gate_that_fails_ends_with_status_6_and_keeps_the_adapter(project: Path) -> None:
    failed = peftcli("train", "recipe.yaml", "--set", "gates={eval_loss: '< 0.0001'}", cwd=project)
    assert failed.returncode == 6, failed.stderr
    assert "gate failed: eval_loss < 0.0001" in failed.stderr.splitlines()[-1]
    assert (project / "runs" / "demo" / "adapter_model.safetensors").exists()
    passed = peftcli(
        "train", "recipe.yaml", "--set", "training.overwrite_output_dir=true",
        "--set", "gates={eval_loss: '< 100'}", cwd=project,
    )  # fmt: skip
    assert passed.returncode == 0, passed.stderr


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ("base_model=./nowhere", 4, "nowhere"),
        ("data.train.path=nowhere.jsonl", 3, "nowhere.jsonl"),
        ("adapter.target_modules=[q_prj]", 4, "q_proj"),
        ("data.train.columns={prompt: promt}", 3, "promt"),
        ("data.max_length=8", 3, "overflow"),
        ("training.lr=1", 2, "learning_rate"),
        ("task_type=CAUSAL", 2, "CAUSAL_LM"),
        ("training.metric_for_best_model=bleu", 2, "bleu"),
    ],
)
def test_what_is_wrong_ends_in_one_line_with_its_status(
    project: Path, change: str, status: int, says: str
) -> None:
    best = ["--set", "training.load_best_model_at_end=true"] if "metric" in change else []
    done = peftcli("train", "recipe.yaml", "--set", change, *best, cwd=project)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (status, 1), done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert not (project / "runs" / "demo" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "rows.jsonl"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "row 2"),
        (b'{"prompt": "\xff", "completion": "b"}\n', "UTF-8"),
        (b'{"prompt": "a", "completion": ""}\n', "row 1"),
        (b'{"question": "a", "answer": "b"}\n', "question"),
    ],
)
def test_rows_that_cannot_be_trained_on_end_in_one_line_with_status_3(
    project: Path, content: bytes, says: str
) -> None:
    (project / "rows.jsonl").write_bytes(content)
    done = peftcli("train", "recipe.yaml", cwd=project)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (3, 1), done.stderr
    assert says in errors[0]
