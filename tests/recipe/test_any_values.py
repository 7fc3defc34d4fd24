"""Whatever values a recipe holds, it is read or refused in words: nothing else comes out."""

from hypothesis import given
from hypothesis import strategies as st

from peftcli.errors import RecipeError
from peftcli.recipe.adapter import known_fields
from peftcli.recipe.hints import levels
from peftcli.recipe.read import check_document
from peftcli.recipe.source import Document

KNOWN = levels(known_fields(None)[0])

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["LORA", "no"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def section(level: str):
    keys = st.sampled_from(KNOWN[level]) | st.text(max_size=4)
    return st.dictionaries(keys, values, max_size=4) | values


recipes = st.fixed_dictionaries(
    {"base_model": st.just("org/model") | values, "task_type": st.just("CAUSAL_LM") | values},
    optional={
        "adapter": st.fixed_dictionaries({"peft_type": st.just("LORA")}, optional={"r": values})
        | section("adapter"),
        "data": st.fixed_dictionaries(
            {"train": section("data.train")}, optional={"eval": section("data.train"), "max_length": values}
        )
        | section("data"),
        "training": section("training"),
        "quantization": values,
        "gates": values,
        "learning_rate": values,
    },
)


@given(recipes)
def test_any_values_are_read_or_refused_in_one_line_each(values):
    try:
        check_document(Document("recipe.yaml", values))
        said = ["ok"]
    except RecipeError as error:
        said = error.lines()
    assert said
    assert all(line.strip() for line in said)
