"""`peftcli check`: is the recipe well-formed, and its data trainable?"""

import json

import pytest
import torch

from peftcli.cli.app import run


def test_a_recipe_that_is_right_is_summed_up_on_standard_error(peftcli, recipe):
    done = peftcli("check", "recipe.yaml", "--set", "training.max_steps=7", check=0)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "recipe.yaml: ok",
        "  base      org/model (CAUSAL_LM)",
        "  adapter   LORA on all-linear",
        "  train     rows.jsonl, 7 steps",
        "  eval      25% of the training rows",
        "  output    out",
    ]


def test_json_holds_the_recipe_with_every_default(peftcli, recipe):
    done = peftcli("check", "recipe.yaml", "--json", "--set", "training.learning_rate=1e-4", check=0)
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["recipe"]["training"]["learning_rate"] == 1e-4
    assert report["recipe"]["training"]["seed"] == 42


def test_every_problem_is_a_line_with_its_place(peftcli, recipe):
    recipe.write_text(recipe.read_text().replace("eval: 0.25", "evl: 0.25") + "  seed: x\n")
    done = peftcli("check", "recipe.yaml", check=2)
    assert done.stderr.splitlines() == [
        "error: recipe.yaml:6:3: data.evl: unknown key; did you mean 'eval'?",
        'error: recipe.yaml:9:3: training.seed: must be a whole number, not "x"',
    ]


@pytest.fixture
def tiny(recipe, tiny_base):
    """The recipe with a base and rows that are there."""
    rows = [{"prompt": f"question {n}", "completion": " answer"} for n in range(8)]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(recipe.read_text().replace("org/model", str(tiny_base)))
    return recipe


def test_with_data_the_rows_are_counted(peftcli, tiny):
    done = peftcli("check", "recipe.yaml", "--data", "--json", check=0)
    data = json.loads(done.stdout)["data"]
    assert data["train"]["rows"] == 6
    assert data["eval"]["rows"] == 2
    assert "  train     rows.jsonl, 3 epochs\n" in done.stderr
    assert "6 rows" in done.stderr


@pytest.mark.parametrize(
    ("override", "status", "message"),
    [
        ("data.train.path=nowhere.jsonl", 3, "nowhere.jsonl"),
        ("data.train.type=chat", 3, "messages"),
        ("data.max_length=4", 3, "data.overflow"),
        ("base_model=./nowhere", 4, "nowhere"),
        ("adapter.target_modules=[q_porj]", 4, "q_porj"),
    ],
)
def test_with_data_what_cannot_be_trained_on_has_its_own_status(tiny, capsys, override, status, message):
    rows = f"data.train.path={tiny.parent / 'rows.jsonl'}"
    assert run(["check", str(tiny), "--data", "--set", rows, "--set", override]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_with_data_the_memory_is_planned(peftcli, tiny):
    done = peftcli("check", "recipe.yaml", "--data", "--json", check=0)
    memory = json.loads(done.stdout)["memory"]
    assert memory["fits"]
    assert memory["total"] >= memory["training"] == sum(memory["parts"].values())
    assert "\n  memory    of each process, on its " in done.stderr
    assert done.stderr.splitlines()[-1].startswith("    at most")


def test_a_recipe_for_another_machine_is_right_without_a_plan(tiny, capsys, monkeypatch):
    """Of a precision that this one does not have."""
    monkeypatch.chdir(tiny.parent)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["check", "recipe.yaml", "--data", "--json", "--set", "training.fp16=true"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["memory"] is None
    assert "warning: there is no memory plan: training.fp16 needs a CUDA device" in error


def test_a_lock_is_written_beside_the_recipe_and_a_locked_run_keeps_to_it(peftcli, tiny):
    train = ("train", "recipe.yaml", "--locked", "--set", "training.output_dir=out")
    assert "there is no recipe.lock.yaml; write it by `peftcli check recipe.yaml --data --lock`" in (
        peftcli(*train, check=2).stderr
    )
    tiny.write_text(tiny.read_text() + "  max_steps: 1\n  save_strategy: 'no'\n")
    done = peftcli("check", "recipe.yaml", "--data", "--lock", check=0)
    assert done.stderr.splitlines()[-1] == "  lock      recipe.lock.yaml"
    peftcli(*train, check=0)
    # The run's own lock is the one that was written before it.
    folder = tiny.parent
    assert (folder / "out" / "recipe.lock.yaml").read_text() == (folder / "recipe.lock.yaml").read_text()
    again = peftcli("check", "recipe.yaml", "--data", "--lock", check=0)
    assert "changed in the lock" not in again.stderr
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "completion": " row"}\n')
    refused = peftcli(*train, "--set", "training.overwrite_output_dir=true", check=2).stderr
    assert "--locked: this is not what recipe.lock.yaml says: " in refused
    assert "sha256" in refused
    changed = peftcli("check", "recipe.yaml", "--data", "--lock", check=0).stderr
    assert "changed in the lock: data.train_sources.0.rows: 9, was 8\n" in changed
    peftcli(*train, "--set", "training.overwrite_output_dir=true", check=0)


def test_a_lock_needs_the_data(recipe, capsys):
    assert run(["check", str(recipe), "--lock"]) == 2
    assert capsys.readouterr().err == "error: --lock writes down what the data is; add --data\n"


def test_what_is_no_lock_is_not_overwritten(tiny, capsys, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    other = tiny.with_suffix(".lock.yaml")
    other.write_text("mine: 1\n")
    assert run(["check", "recipe.yaml", "--data", "--lock"]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: recipe.lock.yaml: is not a lock")
    assert other.read_text() == "mine: 1\n"
