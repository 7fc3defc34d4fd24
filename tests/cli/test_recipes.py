"""`peftcli recipes`: the recipes that come with it."""

import json
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_recipe_is_listed_with_what_it_is_for(peftcli):
    lines = peftcli("recipes", check=0).stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(len(line.split()) > 4 for line in lines)


def test_the_list_is_also_json(peftcli):
    listed = json.loads(peftcli("recipes", "--json", check=0).stdout)
    assert {"quickstart"} <= {entry["name"] for entry in listed}
    assert all(entry["description"].endswith(".") for entry in listed)


def test_a_recipe_is_printed_as_it_is(peftcli):
    text = (RECIPES / "quickstart.yaml").read_text(encoding="utf-8")
    assert peftcli("recipes", "quickstart", check=0).stdout == text
    assert peftcli("recipes", "quickstart.yaml", check=0).stdout == text


def test_where_a_recipes_rows_are_is_said_where_they_are_not_at_hand(peftcli, tmp_path):
    said = peftcli("recipes", "quickstart", check=0).stderr.splitlines()
    assert [Path(line).name for line in said[1:]] == ["quickstart-train.jsonl", "quickstart-eval.jsonl"]
    assert all(Path(line).is_file() for line in said[1:])
    assert peftcli("recipes", "quickstart", check=0, cwd=RECIPES.parent).stderr == ""


def test_an_unknown_recipe_gets_the_nearest_name(peftcli):
    done = peftcli("recipes", "quickstrat", check=2)
    assert done.stderr == "error: there is no built-in recipe 'quickstrat'; did you mean 'quickstart'?\n"
    assert peftcli("recipes", "../pyproject.toml", check=2).stdout == ""
