"""`--set a.b=value` goes through the schema, and beats the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftcli.errors import RecipeError
from peftcli.recipe.overrides import apply_overrides
from peftcli.recipe.source import Document


def test_an_override_has_the_type_that_the_schema_says(read):
    recipe = read(
        "training.learning_rate=1e-4",
        "training.num_train_epochs=2",
        "training.report_to=[tensorboard]",
        "adapter.target_modules=[q_proj, v_proj]",
        'training.run_name="12"',
        "training.max_grad_norm=0",
    )
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.num_train_epochs == 2.0
    assert recipe.training.report_to == ["tensorboard"]
    assert recipe.adapter["target_modules"] == ["q_proj", "v_proj"]
    assert recipe.training.run_name == "12"


def test_the_command_line_beats_the_file_and_the_last_one_the_first(read):
    assert read("training.output_dir=a", "training.output_dir=b").training.output_dir == "b"


def test_text_is_taken_as_it_stands(read):
    text = "Answer: yes # or no, *never* & !both"
    assert read(f"data.system_prompt={text}").data.system_prompt == text
    assert read("data.chat_template=a=b").data.chat_template == "a=b"
    assert read(r"adapter.target_modules=.*\.(q|v)_proj").adapter["target_modules"] == r".*\.(q|v)_proj"


def test_null_takes_a_value_away(read):
    assert read("data.max_length=3", "data.max_length=null").data.max_length is None
    assert read("data.max_length=3", "data.max_length=").data.max_length is None


@pytest.mark.parametrize("key", ["data.train.path", "data.train.0.path"])
@pytest.mark.parametrize("train", ["{path: a}", "[{path: a}]"])
def test_the_only_source_needs_no_number(read, key, train):
    recipe = read(f"data.train={train}", f"{key}=b")
    assert [source.path for source in recipe.data.train] == ["b"]


def test_one_source_of_several_is_named_by_its_number(read):
    recipe = read("data.train=[{path: a}, {path: b}]", "data.train.1.weight=0.5")
    assert [source.weight for source in recipe.data.train] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.learning_rate"], "write it as --set a.b=value"),
        (["=3"], "write it as --set a.b=value"),
        (["training..x=3"], "write it as --set a.b=value"),
        (["base_model.x=3"], "there is no 'x' to set in text; set the whole value instead"),
        (
            ["data.train=[{path: a}, {path: b}]", "data.train.path=c"],
            "the list has 2 items; give the number of one",
        ),
        (["data.train=[{path: a}]", "data.train.3.path=c"], "the last is number 0"),
        (["adapter.target_modules=[qv]_proj"], "text that begins with [ is read as YAML, so quote it whole"),
        (["adapter.target_modules=[!!python/name:os.system x]"], "is not allowed"),
        (["data.system_prompt=\udcff"], "not valid Unicode"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused_with_its_own_words(read, overrides, message):
    with pytest.raises(RecipeError) as caught:
        read(*overrides)
    (line,) = caught.value.lines()
    assert line.startswith("--set ")
    assert message in line


def test_a_problem_below_an_override_is_said_of_the_override(problems):
    assert problems("data.train={path: a, weight: -1}")[0].startswith(
        "--set data.train={path: a, weight: -1}: data.train.weight"
    )
    assert problems("training.lr_scheduler_typ.x=3")[0].startswith("--set training.lr_scheduler_typ.x=3: ")


names = st.text("abcdefg_", min_size=1, max_size=6)


@given(
    st.lists(names, min_size=1, max_size=5),
    st.integers() | st.booleans() | st.none() | st.text("abc #:-*", max_size=9),
)
def test_a_set_value_is_found_where_it_was_set(path, value):
    document = Document("x", {})
    written = (
        {True: "true", False: "false", None: "null"}.get(value, value)
        if not isinstance(value, int) or isinstance(value, bool)
        else value
    )
    expected = value.strip() if isinstance(value, str) else value
    apply_overrides(document, [f"{'.'.join(path)}={written}"])
    found = document.values
    for name in path:
        found = found[name]
    assert found == (expected if expected != "" else None)
    assert document.where(tuple(path)).startswith("--set ")
