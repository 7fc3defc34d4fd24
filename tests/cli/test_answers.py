"""What commands print with `--json` is what `peftcli schema COMMAND` says, key by key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from peftcli.cli.app import COMMANDS, run
from peftcli.run.answers import ANSWERS
from tests.data.writers import write_jsonl
from tests.run.made_runs import make_run, write_answers
from tests.tasks.animals import animals, trained


def closed(schema: Any) -> Any:
    """The schema with no keys beside those it names: what is printed must be described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    if "properties" in shut and isinstance(shut.get("type"), str):
        shut.setdefault("additionalProperties", False)
    return shut


class Answers:
    """Runs commands, and holds what they print against their schemas."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, command: str, *arguments: Any, status: int = 0, rows: bool = False) -> Any:
        self._capsys.readouterr()
        assert run(["schema", command]) == 0
        schema = json.loads(self._capsys.readouterr().out)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert run([command, *map(str, arguments), "--json"]) == status, self._capsys.readouterr().err
        found = json.loads(self._capsys.readouterr().out, parse_constant=pytest.fail)
        # Rows have their own columns beside what is added to them.
        jsonschema.validate(found, schema if rows else closed(schema))
        return found


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Answers:
    capsys.readouterr()
    return Answers(capsys)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gates = {"eval_accuracy": ">= 0.0"}
    return trained(
        tmp_path_factory.mktemp("answers"), "single", gates=gates, training={"num_train_epochs": 1}
    )


def test_every_command_with_json_has_a_schema_and_no_other() -> None:
    from typer.main import get_command

    from peftcli.cli.app import app

    group: Any = get_command(app)
    with_json = {
        name
        for name, command in group.commands.items()
        if any("--json" in each.opts for each in command.params)
    }
    assert with_json == set(ANSWERS)
    assert len(COMMANDS) > len(ANSWERS)


def test_a_command_without_json_has_no_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "evall"]) == 2
    assert "did you mean 'eval'?" in capsys.readouterr().err


def test_train_and_its_smoke_run(run_folder: Path, tmp_path: Path, answers: Answers) -> None:
    recipe = run_folder.parent / "recipe.yaml"
    changes = ["--set", f"training.output_dir={tmp_path / 'run'}", "--set", "training.num_train_epochs=1"]
    found = answers("train", recipe, *changes)
    assert found["steps"] == 16
    assert answers("train", recipe, *changes, "--smoke")["longest_row"] == 5


def test_a_smoke_run(tiny_base: Path, tmp_path: Path, answers: Answers) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"row {n}"} for n in range(8)])
    recipe = {
        "base_model": str(tiny_base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA"},
        "data": {"train": {"path": str(rows)}, "eval": 0.25, "max_length": 64},
        "training": {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert answers("train", tmp_path / "recipe.yaml", "--smoke")["ok"] is True


def test_check(run_folder: Path, answers: Answers) -> None:
    recipe = run_folder.parent / "recipe.yaml"
    answers("check", recipe)
    assert answers("check", recipe, "--data")["data"]["train"]["rows"] == 256
    for target in ("vllm", "llamacpp", "peft"):
        assert run(["check", str(run_folder), "--target", target]) in {0, 4}
    answers("check", run_folder, "--target", "peft")


def test_eval_and_predict(run_folder: Path, tmp_path: Path, answers: Answers) -> None:
    assert answers("eval", run_folder)["rows"] == 40
    rows = write_jsonl(tmp_path / "rows.jsonl", animals("single", 3, seed=2))
    answers("predict", "--adapter", run_folder, "--input", rows, rows=True)
    answers("predict", "--adapter", run_folder, "--input", rows, "--output", tmp_path / "out.jsonl")


def test_inspect_of_one_and_of_two(run_folder: Path, answers: Answers) -> None:
    assert answers("inspect", run_folder)["method"] == "LORA"
    assert answers("inspect", run_folder, run_folder)["same"] is True


def test_merge_and_push(run_folder: Path, tmp_path: Path, answers: Answers) -> None:
    assert answers("merge", "--adapter", run_folder, "--output", tmp_path / "plain")["verified"] is None
    assert answers("merge", "--adapter", run_folder, "--output", tmp_path / "m", "--verify")["verified"]
    assert answers("push", run_folder, "org/name", "--dry-run")["commit"] is None


def test_generate(tiny_base: Path, tmp_path: Path, answers: Answers) -> None:
    from transformers import AutoModelForCausalLM

    from tests.run.adapters import saved

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    folder = saved(tmp_path / "adapter", base, base_model_name_or_path=str(tiny_base), task_type="CAUSAL_LM")
    short = ("--adapter", folder, "--max-new-tokens", 2)
    answers("generate", *short, "--prompt", "a", "--prompt", "b", rows=True)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "id": 1}])
    answers("generate", *short, "--input", rows, rows=True)
    assert answers("generate", *short, "--input", rows, "--output", tmp_path / "o.jsonl")["rows"] == 1


def test_report_and_recipes(tmp_path: Path, answers: Answers) -> None:
    runs = [make_run(tmp_path / name, finished=name == "a") for name in "ab"]
    write_answers(runs[0] / "after.jsonl", [({"prompt": "a", "completion": "b"}, "b")])
    assert len(answers("report", *runs)["runs"]) == 2
    shutil.rmtree(runs[1])
    assert answers("recipes")
