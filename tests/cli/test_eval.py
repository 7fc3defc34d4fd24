"""`peftcli eval`: the adapter beside its bare base, on the rows that were held out or on others; gates."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.app import run as command
from tests.data.writers import write_jsonl
from tests.run.test_summary import shown
from tests.tasks.animals import animals, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of animals that is right about all of them, and its gates."""
    gates = {"eval_accuracy": ">= 0.9", "eval_loss": "< 0.5"}
    return trained(tmp_path_factory.mktemp("eval"), "single", gates=gates)


def copied(run: Path, folder: Path, without: str = "") -> Path:
    """The run's files, but for one."""
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file() and path.name != without:
            shutil.copy(path, folder)
    return folder


def last_evaluation(run: Path) -> dict[str, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    last = [record for record in records if "eval_loss" in record][-1]
    return {name: value for name, value in last.items() if name.startswith("eval_")}


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: Any, status: int = 0) -> Any:
    """What the command said: (standard output, standard error)."""
    capsys.readouterr()
    assert command(["eval", *map(str, arguments)]) == status
    return capsys.readouterr()


def test_the_adapter_stands_beside_its_base_in_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = evaluated(capsys, run).out.splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["metric", "base", "adapter"]
    assert [row[0] for row in cells[1:5]] == [
        "eval_loss",
        "eval_accuracy",
        "eval_f1",
        "eval_matthews_correlation",
    ]
    assert cells[2][2] == "1"
    assert float(cells[2][1]) < 0.7
    assert lines[5:] == []


def test_its_gates_are_a_table_and_the_job_gets_a_summary_of_both_models(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    told = evaluated(capsys, run).err.splitlines()
    assert [line.split() for line in told[-3:]] == [
        ["gate", "bound", "value", "result"],
        ["eval_accuracy", ">=", "0.9", "1", "passed"],
        ["eval_loss", "<", "0.5", told[-1].split()[3], "passed"],
    ]
    heading, rows = shown((tmp_path / "summary.md").read_text(encoding="utf-8"))
    assert heading == [f"peftcli eval: {run.name}"]
    assert [row[0] for row in rows[1:4]] == ["base", "folder", "rows"]
    assert rows[3][1] == "40 of those held out"
    assert rows[4] == ["metric", "base", "adapter"]
    assert rows[6][0] == "eval_accuracy"
    assert rows[6][2] == "1"
    assert [row[-1] for row in rows[-2:]] == ["passed", "passed"]


def test_json_has_the_metrics_that_training_ended_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(evaluated(capsys, run, "--json", "--batch-size", 7).out)
    assert found["adapter"] == pytest.approx(last_evaluation(run))
    assert found["adapter_dir"] == str(run)
    assert found["rows"] == 40
    assert found["gates"] == {"eval_accuracy >= 0.9": True, "eval_loss < 0.5": True}
    assert found["base"]["eval_loss"] > found["adapter"]["eval_loss"]


def test_a_share_of_the_training_rows_is_held_out_again_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", animals("single", 60, seed=3))
    run = trained(tmp_path, "single", data={"train": {"path": str(rows)}, "eval": 0.2})
    found = json.loads(evaluated(capsys, run, "--json").out)
    assert found["rows"] == 12
    assert found["adapter"] == pytest.approx(last_evaluation(run))


def test_other_rows_are_read_as_the_training_rows_were(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "other.jsonl", animals("single", 9, seed=4))
    assert json.loads(evaluated(capsys, run, "--json", "--data", rows).out)["rows"] == 9


def test_a_gate_that_fails_is_shown_and_ends_with_status_6(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    wrong = [row | {"label": "fish"} for row in animals("single", 20, seed=5)]
    rows = write_jsonl(tmp_path / "wrong.jsonl", wrong)
    told = evaluated(capsys, run, "--data", rows, status=6)
    assert re.search(r"^eval_accuracy +>= 0.9 +0.* failed$", told.err, re.MULTILINE)
    assert "error: gate failed: eval_accuracy >= 0.9, but it is 0." in told.err
    _, lines = shown((tmp_path / "summary.md").read_text(encoding="utf-8"))
    assert lines[-2][-1] == "failed"


def test_what_cannot_be_evaluated_is_said_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(status: int, *arguments: Any) -> str:
        lines = evaluated(capsys, *arguments, status=status).err.splitlines()
        return str(lines[-1])

    rows = [*animals("single", 1, seed=0), {"text": "the cat sits", "label": "mamal"}]
    unknown = write_jsonl(tmp_path / "unknown.jsonl", rows)
    line = says(3, run, "--data", unknown)
    assert line == (f"error: {unknown}: row 2: the label 'mamal' is none of the 3; did you mean 'mammal'?")
    assert "no such file" in says(3, run, "--data", tmp_path / "none.jsonl")
    assert "has no recipe.lock.yaml" in says(4, copied(run, tmp_path / "bare", "recipe.lock.yaml"))
    assert "has no adapter_config.json" in says(4, copied(run, tmp_path / "gone", "adapter_config.json"))
    assert "there is no folder" in says(4, tmp_path / "nowhere")


def test_a_run_that_held_out_no_rows_needs_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_jsonl(tmp_path / "rows.jsonl", animals("single", 32, seed=3)))
    training = {"eval_strategy": "no", "num_train_epochs": 1}
    run = trained(tmp_path, "single", data={"train": {"path": rows}}, training=training)
    assert "held out no rows (data.eval); name some with --data" in evaluated(capsys, run, status=2).err
    assert json.loads(evaluated(capsys, run, "--json", "--data", rows).out)["rows"] == 32


def test_rows_that_have_changed_since_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run.parent, again)
    lock = again / "run" / "recipe.lock.yaml"
    lock.write_text(lock.read_text().replace(str(run.parent), str(again)))
    write_jsonl(again / "eval.jsonl", animals("single", 8, seed=9))
    told = evaluated(capsys, again / "run").err
    assert f"warning: {again / 'eval.jsonl'} has changed since the adapter was trained" in told
    assert "has changed" not in evaluated(capsys, run).err


def test_a_metric_that_is_undefined_is_null_and_no_gate_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pearson's correlation with what never changes: training goes on, and files stay JSON."""
    same = [row | {"label": 1.0} for row in animals("regression", 8, seed=1)]
    sources = {
        "train": {"path": str(write_jsonl(tmp_path / "some.jsonl", animals("regression", 32, seed=0)))},
        "eval": {"path": str(write_jsonl(tmp_path / "same.jsonl", same))},
    }
    best = {
        "num_train_epochs": 2,
        "metric_for_best_model": "pearson",
        "load_best_model_at_end": True,
        "save_strategy": "epoch",
    }
    run = trained(tmp_path, "regression", data=sources, training=best)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for record in (json.loads(line, parse_constant=pytest.fail) for line in lines):
        assert record.get("eval_pearson") is None
    found = json.loads(evaluated(capsys, run, "--json").out, parse_constant=pytest.fail)
    assert found["adapter"]["eval_pearson"] is None
    recipe = (run / "recipe.lock.yaml").read_text(encoding="utf-8")
    (run / "recipe.lock.yaml").write_text(recipe.replace("gates: null", "gates: {eval_pearson: '> 0'}"))
    assert "eval_pearson > 0, but it is nan" in evaluated(capsys, run, status=6).err


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = json.loads(evaluated(capsys, run, "--json", "--batch-size", 3).out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "peftcli", "eval", str(run), "--json", "--batch-size", "3"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    for side in ("adapter", "base"):
        assert both[side] == pytest.approx(alone[side])
