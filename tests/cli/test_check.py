"""`peftcli check`: is the recipe well-formed, and its data trainable?"""

import json

import pytest

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
    ],
)
def test_with_data_what_cannot_be_trained_on_has_its_own_status(tiny, capsys, override, status, message):
    rows = f"data.train.path={tiny.parent / 'rows.jsonl'}"
    assert run(["check", str(tiny), "--data", "--set", rows, "--set", override]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
