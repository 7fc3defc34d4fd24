"""Fixtures of the recipes' tests."""

import pytest

from peftcli.errors import RecipeError
from peftcli.recipe.read import read_recipe

GOOD = """\
base_model: org/model
task_type: CAUSAL_LM
adapter: {peft_type: LORA, r: 4}
data:
  train: {path: rows.jsonl}
training:
  output_dir: out
"""


@pytest.fixture
def read(tmp_path):
    """Reads a recipe from its text, by default one that is right, with overrides."""

    def read_text(*overrides, text=GOOD):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path, overrides)

    return read_text


@pytest.fixture
def problems(read, tmp_path):
    """The problems of such a recipe, each without the file's name: `LINE:COLUMN: KEY: …`, or `--set …`."""

    def said(*overrides, text=GOOD):
        with pytest.raises(RecipeError) as caught:
            read(*overrides, text=text)
        return [line.removeprefix(f"{tmp_path / 'recipe.yaml'}:").strip() for line in caught.value.lines()]

    return said
