"""The JSON Schema says what the reader says."""

import json
from pathlib import Path

import jsonschema
import pytest

from peftcli.recipe.json_schema import json_schema, schema_text
from peftcli.recipe.read import read_recipe
from peftcli.recipe.source import read_document
from peftcli.recipe.training import OLDER
from peftcli.run.starter import starter

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_not_stale():
    committed = (RECIPES / "recipe.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: peftcli schema > recipes/recipe.schema.json"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_built_in_recipe_is_valid_and_opens_with_what_it_is_for(validator, path):
    read_recipe(path)
    validator.validate(read_document(path).values)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_starter_is_valid(validator, tmp_path):
    path = tmp_path / "starter.yaml"
    path.write_text(starter("CAUSAL_LM", None), encoding="utf-8")
    read_recipe(path)
    validator.validate(read_document(path).values)


def recipe(**training):
    return {
        "base_model": "org/model",
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]},
        "data": {"train": {"path": "x"}, "eval": [{"path": "y", "type": "chat"}]},
        "training": {"output_dir": "out", **training},
    }


def test_a_source_may_stand_alone_or_in_a_list(validator):
    for train in ({"path": "x"}, [{"path": "x"}, {"path": "y", "weight": 0.5}]):
        validator.validate(recipe() | {"data": {"train": train, "eval": 0.1}})


@pytest.mark.parametrize(
    "wrong",
    [
        recipe(lerning_rate=1),
        recipe(learning_rate="fast"),
        recipe(optim="lomo"),
        recipe(lr_scheduler_type="cosin"),
        recipe(push_to_hub=True),
        recipe() | {"adapter": {"peft_type": "LORA", "rank": 4}},
        recipe() | {"adapter": {"r": 4}},
        recipe() | {"task_type": "SEQ_CLASS"},
        recipe() | {"task_type": "SEQ_CLS", "task": {"lables": ["a", "b"]}},
        recipe() | {"task": {"labels": ["a", "b"]}},
        recipe() | {"data": {"train": []}},
        recipe() | {"data": {"train": {"path": "x"}, "eval": 1}},
        recipe() | {"data": {"train": {"path": "x", "type": "alpaca"}}},
        recipe() | {"gates": {"eval_loss": "low"}},
        recipe() | {"quantization": {"load_in_4bits": True}},
        {"base_model": "x"},
    ],
)
def test_what_the_reader_refuses_an_editor_marks(validator, wrong, tmp_path):
    assert not validator.is_valid(wrong)


def test_older_names_are_taken_and_marked_as_deprecated(validator):
    validator.validate(
        recipe(warmup_ratio=0.1, evaluation_strategy="epoch", group_by_length=True, no_cuda=False)
    )
    properties = json_schema()["$defs"]["Training"]["properties"]
    assert all(properties[name]["deprecated"] for name in OLDER)


def test_every_key_of_the_schema_is_described():
    schema = json.loads(schema_text())
    sections = [schema, *schema["properties"]["adapter"]["oneOf"], *schema["$defs"].values()]
    bare = [
        name
        for section in sections
        for name, key in section["properties"].items()
        if "description" not in key
    ]
    assert set(bare) == {"peft_type"}
