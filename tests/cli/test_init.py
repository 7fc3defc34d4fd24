"""`peftcli init`: a recipe to start from, with rows of ours to train on."""

import json
from pathlib import Path

import pytest

from peftcli.cli.app import run as command
from peftcli.recipe.read import read_recipe
from peftcli.registry import TASKS
from peftcli.run.starter import example_rows
from tests.bases import tiny_base_for


def test_the_starter_is_a_recipe_whose_rows_are_beside_it(peftcli, tmp_path):
    done = peftcli("init", "--output", "mine.yaml", check=0)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "wrote mine.yaml and its rows mine.jsonl",
        "train it with: peftcli train mine.yaml",
    ]
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert recipe.data.train[0].path == "mine.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert {frozenset(row) for row in rows} == {frozenset({"instruction", "output"})}


def test_on_standard_output_the_starter_trains_on_rows_that_are_there(peftcli, tmp_path):
    done = peftcli("init", check=0)
    assert done.stderr == ""
    path = tmp_path / "starter.yaml"
    path.write_text(done.stdout)
    assert Path(read_recipe(path).data.train[0].path).read_text().count("\n") > 40


def test_every_line_of_the_starter_is_told_apart_by_a_comment_or_its_section(peftcli):
    text = peftcli("init", check=0).stdout
    assert text.count("#") > 12


def test_the_base_is_written_so_that_yaml_reads_it_back(peftcli, tmp_path):
    for base in ("org/model", "./a folder: #1", "123", "~"):
        done = peftcli("init", "--base", base, check=0)
        (tmp_path / "starter.yaml").write_text(done.stdout)
        assert read_recipe(tmp_path / "starter.yaml").base_model == base


def test_nothing_is_overwritten(peftcli, tmp_path):
    (tmp_path / "a.jsonl").write_text("mine")
    (tmp_path / "b.yaml").write_text("mine")
    for name in ("a", "b"):
        done = peftcli("init", "-o", f"{name}.yaml", check=2)
        assert "exists already, and is not overwritten" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.yaml"]
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.yaml").read_text() == "mine"


def test_what_cannot_be_written_is_said_in_one_line(peftcli):
    assert "there is no folder" in peftcli("init", "-o", "no/where.yaml", check=2).stderr
    assert "name a .yaml file" in peftcli("init", "-o", "x.jsonl", check=2).stderr
    done = peftcli("init", "--task", "SEQ_CLASS", check=2)
    assert done.stderr == "error: --task SEQ_CLASS: there is no such task; did you mean 'SEQ_CLS'?\n"


@pytest.mark.parametrize("task", TASKS)
def test_the_starter_of_every_task_checks_and_trains_as_it_stands(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = str(tiny_base_for(task, tmp_path / "base"))
    assert command(["init", "--task", task, "--base", base, "--output", "mine.yaml"]) == 0
    assert read_recipe(tmp_path / "mine.yaml").task_type == task
    assert command(["check", "--data", "mine.yaml"]) == 0
    told = capsys.readouterr().err
    assert "mine.yaml: ok" in told
    assert "train     " in told
    assert command(["train", "mine.yaml", "--set", "training.max_steps=2"]) == 0
    assert (tmp_path / "runs" / "mine" / "adapter_model.safetensors").is_file()


def test_the_example_rows_are_the_same_every_time_and_none_twice():
    rows = example_rows().splitlines()
    assert len(set(rows)) == len(rows) == 40
    assert example_rows().splitlines() == rows
