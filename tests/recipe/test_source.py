"""YAML that remembers its lines, and refuses what a recipe must not hold."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peftcli.errors import RecipeError
from peftcli.recipe.source import MAX_BYTES, parse, read_document, scalar, to_yaml


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(tmp_path: Path, content: str | bytes) -> str:
    path = written(tmp_path, content)
    with pytest.raises(RecipeError) as caught:
        read_document(path)
    (line,) = caught.value.lines()
    assert line.startswith(str(path))
    return line.removeprefix(str(path))


def test_every_key_and_item_has_its_place(tmp_path):
    path = written(tmp_path, "a: 1\nb:\n  c: [x, {d: 2}]\n")
    document = read_document(path)
    assert document.values == {"a": 1, "b": {"c": ["x", {"d": 2}]}}
    places = {key: place.removeprefix(f"{path}:") for key, place in document.places.items()}
    assert places == {
        ("a",): "1:1",
        ("b",): "2:1",
        ("b", "c"): "3:3",
        ("b", "c", 0): "3:7",
        ("b", "c", 1): "3:10",
        ("b", "c", 1, "d"): "3:11",
    }


def test_a_place_that_is_not_there_is_that_of_the_key_around_it(tmp_path):
    path = written(tmp_path, "a:\n  b: 1\n")
    document = read_document(path)
    assert document.where(("a", "missing")) == f"{path}:1:1"
    assert document.where(("missing",)) == str(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("-2", -2),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", 10),
        (".5", 0.5),
        ("2026-11-24", "2026-11-24"),
        ("12:30", "12:30"),
        ("null", None),
        ("~", None),
        ("", None),
        ("<<", "<<"),
        ("1.2.3", "1.2.3"),
        ("شلون", "شلون"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_text_with_a_byte_order_mark_is_read(tmp_path):
    assert read_document(written(tmp_path, b"\xef\xbb\xbfa: 1\n")).values == {"a": 1}


def test_aliases_and_merge_keys_work_and_own_keys_win(tmp_path):
    content = "base: &b {x: 1, y: 2}\nsame: *b\nmerged:\n  <<: *b\n  y: 3\n"
    document = read_document(written(tmp_path, content))
    assert document.problems == []
    assert document.values["same"] == {"x": 1, "y": 2}
    assert document.values["merged"] == {"x": 1, "y": 3}


def test_a_duplicate_key_is_a_problem_that_names_both_places(tmp_path):
    path = written(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\n")
    (problem,) = read_document(path).problems
    assert str(problem) == f"{path}:4:3: b.c: given twice, first at {path}:3:3; keep one"


def test_an_alias_bomb_is_refused_in_no_time(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    start = time.perf_counter()
    assert "aliases are expanded" in refusal(tmp_path, "\n".join(lines))
    assert time.perf_counter() - start < 5


def test_an_alias_of_what_it_stands_in_is_refused(tmp_path):
    assert "within itself" in refusal(tmp_path, "a: &a [*a]\n")
    assert "within itself" in refusal(tmp_path, "a: &a\n  <<: *a\n")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(tmp_path, opening):
    assert "nested deeper than 32 levels" in refusal(tmp_path, "a:\n " + opening * 400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2\nb: 3\n", ":2:2: not valid YAML: expected ',' or ']'"),
        ("a: b: c\n", ":1:5: not valid YAML: a second ': ' on this line"),
        ("a:\n\tb: 1\n", ":2:1: not valid YAML: a tab; indent with spaces"),
        ("a: *nothing\n", ":1:4: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", ":2:1: not valid YAML"),
        ("a: 'open\n", "not valid YAML"),
        ("a: 1\nb: \x07\n", ":2: not valid YAML: the character U+0007 is not allowed; remove it"),
        (b"a: 1\nb: \xff\n", ":2: not UTF-8: byte 0xFF on this line; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), ":1: not UTF-8"),
        ("", ": a recipe is a mapping of keys to values, but it is empty"),
        ("# only a comment\n", "but it is empty"),
        ("- a\n- b\n", "but it holds a list"),
        ("just text\n", "but it holds text"),
        (b"a" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_not_one_yaml_mapping_is_refused_in_one_line(tmp_path, content, message):
    assert message in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "1:4: a: the tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !mine 3\n", "1:4: a: the tag !mine is not allowed"),
        ("a: !!binary aGk=\n", "1:4: a: the tag !!binary is not allowed"),
        ("a: !!int x\n", "1:4: a: this value cannot be read"),
        ("1: x\n", "1:1: a key must be text; put it in quotes"),
        ("[a]: x\n", "1:1: a key must be text; put it in quotes"),
        ('a: "\\0"\n', "1:4: a: this value cannot be read (it holds a NUL character)"),
        ('a: "\\ud800"\n', "1:4: a: this value cannot be read (it is not valid Unicode text)"),
        (f"a: {'9' * 5000}\n", "1:4: a: this value cannot be read"),
        ("a: {<<: 3}\n", "1:5: a: << takes a mapping or a list of mappings"),
    ],
)
def test_a_value_that_no_recipe_holds_is_a_problem_with_its_place(tmp_path, content, message):
    (problem,) = read_document(written(tmp_path, content)).problems
    assert message in str(problem)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path):
    written(tmp_path, "a: 1\n")
    with pytest.raises(RecipeError, match=r"there is no such file; did you mean '.*recipe\.yaml'\?"):
        read_document(tmp_path / "recpie.yaml")
    with pytest.raises(RecipeError, match=r"peftcli init"):
        read_document(tmp_path / "nowhere" / "x.yaml")


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="this is a folder"):
        read_document(tmp_path)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(RecipeError, match="cannot be read"):
        read_document(Path("a\0b"))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), plain, max_size=4
    )
)
def test_what_is_written_is_read_back(values):
    text = to_yaml(values)
    assert parse(text, "x")[0] == values
    # Any other reader of YAML reads the same.
    assert yaml.safe_load(text) == values
