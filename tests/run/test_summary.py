"""The summary of a CI job, and the gates on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from peftcli.cli.gates import say_gates
from peftcli.run.figures import duration, figure, size
from peftcli.run.summary import append_summary, summary
from peftcli.run.verdicts import Verdict, verdicts

ROOT = Path(__file__).parents[2]
GATES = {"eval_loss": "<1.2", "eval_accuracy": ">= .9", "eval_f1": "> 0"}
METRICS = {"eval_loss": 1.0, "eval_accuracy": 0.5}
EVIL = [
    "a|b",
    "a\\|b",
    "`a`",
    "<b>a</b>",
    "**a** _b_ ~c~",
    "[a](https://e.org)",
    "https://e.org",
    "a\n\n# b",
    "&amp;",
    "@a #1 $x$",
]


def shown(markdown: str) -> tuple[list[str], list[list[str]]]:
    """The heading and each table row of Markdown, as their reader sees them: text, and nothing but text."""
    lines: list[list[str]] = []
    heading: list[str] = []
    at = ""
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        at = token.type if token.type.endswith("_open") else at
        if token.type == "tr_open":
            lines.append([])
        if token.type == "inline":
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special", "html_inline", "strong_open", "strong_close"}, (
                token.content
            )
            inline = "".join(child.content for child in token.children if child.type != "html_inline")
            tags = {child.content for child in token.children if child.type == "html_inline"}
            assert tags <= {"<code>", "</code>"}
            (heading if at == "heading_open" else lines[-1]).append(inline)
    return heading, lines


def made(**changed: Any) -> str:
    given = {"facts": {"base": "org/base"}, "metrics": {"value": METRICS}, "gates": verdicts(GATES, METRICS)}
    return summary("peftcli train: demo", **(given | changed))


def test_each_gate_has_its_value_and_what_became_of_it() -> None:
    assert verdicts(GATES, METRICS) == [
        Verdict("eval_loss", "< 1.2", 1.0, passed=True),
        Verdict("eval_accuracy", ">= 0.9", 0.5, passed=False),
        Verdict("eval_f1", "> 0", None, passed=False),
    ]
    assert [each.result for each in verdicts(GATES, METRICS)] == ["passed", "failed", "not evaluated"]
    assert verdicts(None, METRICS) == []
    assert not verdicts({"x": "< 1"}, {"x": float("nan")})[0].passed


def test_the_summary_has_facts_metrics_and_gates() -> None:
    heading, rows = shown(made())
    assert heading == ["peftcli train: demo"]
    assert rows == [
        ["", ""],
        ["base", "org/base"],
        ["metric", "value"],
        ["eval_loss", "1"],
        ["eval_accuracy", "0.5"],
        ["gate", "bound", "value", "result"],
        ["eval_loss", "< 1.2", "1", "passed"],
        ["eval_accuracy", ">= 0.9", "0.5", "failed"],
        ["eval_f1", "> 0", "–", "not evaluated"],
    ]


def test_metrics_of_adapter_and_base_stand_side_by_side() -> None:
    _, rows = shown(made(metrics={"base": {"eval_loss": 2.0}, "adapter": METRICS}, gates=[]))
    assert rows[2:] == [["metric", "base", "adapter"], ["eval_loss", "2", "1"], ["eval_accuracy", "–", "0.5"]]


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_is_markup_in_the_summary(evil: str) -> None:
    plain = " ".join(evil.split())
    gates = [Verdict(evil, evil, 1.0, passed=True)]
    markdown = summary(evil, facts={"base": evil}, metrics={evil: {evil: 1.0}}, gates=gates)
    heading, rows = shown(markdown)
    assert heading == [plain]
    assert rows[1] == ["base", plain]
    assert rows[2:4] == [["metric", plain], [plain, "1"]]
    assert rows[5] == [plain, plain, "1", "passed"]


def test_a_summary_is_added_to_what_the_job_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before, without an end of line")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    said: list[str] = []
    for name in ("first", "second"):
        append_summary(name, facts={}, metrics={}, gates=[], say=said.append)
    assert shown(path.read_text(encoding="utf-8").split("\n", 1)[1])[0] == ["first", "second"]
    assert said == []


@pytest.mark.parametrize("place", ["", "no/such/summary.md", "."])
def test_where_there_is_no_place_for_a_summary_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / place) if place else "")
    said: list[str] = []
    append_summary("x", facts={}, metrics={}, gates=[], say=said.append)
    assert [line.partition(": ")[0] for line in said] == (["warning"] if place else [])
    assert list(tmp_path.iterdir()) == []


def test_gates_are_a_table_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say_gates(verdicts(GATES, METRICS))
    assert capsys.readouterr().err.splitlines() == [
        "gate           bound   value  result",
        "eval_loss      < 1.2   1      passed",
        "eval_accuracy  >= 0.9  0.5    failed",
        "eval_f1        > 0     –      not evaluated",
    ]
    say_gates([])
    assert capsys.readouterr() == ("", "")


def test_numbers_are_written_as_people_read_them() -> None:
    assert [figure(value) for value in (0, 1.0, 1234.5, 0.93751, 1.2e-5, 1e20)] == [
        "0", "1", "1,234", "0.9375", "1.2e-05", "1e+20"
    ]  # fmt: skip
    assert [size(count) for count in (12, 4_900_000, 2_300_000_000)] == ["12 B", "4.9 MB", "2.3 GB"]
    assert [duration(seconds) for seconds in (9.53, 59.96, 125, 12_000)] == [
        "9.5 s", "1 min 00 s", "2 min 05 s", "3 h 20 min"
    ]  # fmt: skip


@pytest.mark.parametrize(("bound", "status", "result"), [("< 100", 0, "passed"), ("< 0.001", 6, "failed")])
def test_training_leaves_a_summary_whether_its_gates_hold_or_not(
    tmp_path: Path, tiny_base: Path, bound: str, status: int, result: str
) -> None:
    rows = [{"prompt": f"say {n}", "completion": f" {n}!"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base_model": str(tiny_base),
        "base_model_id": "org/tiny|base",
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"},
        "data": {"train": {"path": "rows.jsonl"}, "eval": 0.25},
        "training": {"output_dir": "runs/demo", "max_steps": 2, "eval_strategy": "epoch", "use_cpu": True},
        "gates": {"eval_loss": bound},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GITHUB_STEP_SUMMARY": "summary.md"}
    done = subprocess.run(
        [sys.executable, "-m", "peftcli", "train", "recipe.yaml"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stderr
    heading, lines = shown((tmp_path / "summary.md").read_text(encoding="utf-8"))
    assert heading == ["peftcli train: demo"]
    assert ["base", "org/tiny|base"] in lines
    assert [line[0] for line in lines[1:6]] == ["base", "adapter", "folder", "steps", "time"]
    assert lines[-1][0] == "eval_loss"
    assert lines[-1][-1] == result
    printed = done.stderr.splitlines()
    at = printed.index(next(line for line in printed if line.startswith("gate ")))
    assert printed[at + 1].split()[-1] == result
