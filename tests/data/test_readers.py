"""Every kind of file gives its rows as they are, or an error that names the file and the row."""

from __future__ import annotations

import csv
import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftcli.data.sources import read_rows
from peftcli.errors import DataError, RecipeError
from peftcli.recipe.schema import Source
from tests.data.writers import TEXTS, write_jsonl


def rows_of(path, **settings):
    return [raw.columns for raw in read_rows(Source(path=str(path), **settings))]


def refusal(path, **settings):
    with pytest.raises(DataError) as caught:
        rows_of(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [{"text": text} for text in TEXTS]


def test_json_lines_come_through_unharmed(tmp_path):
    assert rows_of(write_jsonl(tmp_path / "a.jsonl", ROWS)) == ROWS


@pytest.mark.parametrize("content", [ROWS, {"version": 1, "data": ROWS}])
def test_json_is_a_list_or_an_object_with_one_list(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert rows_of(path) == ROWS


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_delimited_cells_come_through_unharmed(tmp_path, suffix, delimiter, line_end):
    path = tmp_path / f"a{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
        writer.writerow(["text"])
        writer.writerows([text] for text in TEXTS)
    assert rows_of(path) == ROWS


def test_text_lines_are_split_at_line_feeds_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\x00\u2028still one\r\n\n  \ntwo\x0cstill two\nthree".encode())
    assert [row["text"] for row in rows_of(path)] == ["one\x00\u2028still one", "two\x0cstill two", "three"]


def test_parquet_comes_through_unharmed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == ROWS


def test_folders_of_save_to_disk_come_through_unharmed(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "two", split="test") == ROWS[:1]
    assert "several splits; set `split` to one of: train, test" in refusal(tmp_path / "two")
    assert "no split 'tst'; did you mean 'test'?" in refusal(tmp_path / "two", split="tst")
    assert "has no splits; remove `split: x`" in refusal(tmp_path / "one", split="x")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    for name, content in {
        "a.jsonl": '{"text": "x"}',
        "a.csv": "text\nx",
        "a.txt": "x",
        "a.json": '[{"text":"x"}]',
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert rows_of(tmp_path / name) == [{"text": "x"}]


def test_a_huge_cell_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 1_000_000 + "\n")
    assert len(rows_of(tmp_path / "a.csv")[0]["text"]) == 1_000_000


def test_globs_are_read_in_the_order_of_names(tmp_path):
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert [row["text"] for row in rows_of(tmp_path / "*.jsonl")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl: row 2 (line 3): broken JSON: Expecting value"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "\xff"}\n',
            "a.jsonl: row 2: not UTF-8 (byte 0xff at byte 11 of the line)",
        ),
        ("a.jsonl", b'["x"]\n', "a.jsonl: row 1: a row must be a JSON object, not a list"),
        ("a.jsonl", b"[" * 100_000, "row 1: broken JSON"),
        ("a.jsonl", b'{"x": ' + b"9" * 5000 + b"}", "row 1: broken JSON: a number has too many digits"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}\n', "name the file .jsonl"),
        ("a.json", b'[{"text": "x"}, 3]', "a.json: row 2: a row must be a JSON object, not a number"),
        ("a.json", b'{"a": [], "b": []}', "not an object with 2 lists"),
        ("a.json", b"{\n  oops", "line 2 column 3"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv: row 2 (line 3): 3 cells, but the header has 2"),
        ("a.csv", b'a,b\n"x\ny",2\n1\n', "a.csv: row 2 (line 4): 1 cells"),
        ("a.csv", b'a\n"open\n', "a.csv: row 1 (line 2): unexpected end of data"),
        ("a.csv", b"a\nx\xff\n", "a.csv: line 2: not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "names the column 'a' twice"),
        ("a.txt", b"x\n\xe2\x82\n", "a.txt: row 2: not UTF-8"),
        ("a.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("a.jsonl", b"", "there is no row in it"),
        ("a.csv", b"text\n", "there is no row in it"),
        ("a.txt", b"\n \n", "there is no row in it"),
        ("a.json", b"", "there is no row in it"),
        ("a.json", b"[]", "there is no row in it"),
        ("a.xlsx", b"x", "unknown kind of file '.xlsx'"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_the_row(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    assert f"did you mean '{tmp_path / 'train.jsonl'}'?" in refusal(tmp_path / "trian.jsonl")
    assert "there is no folder" in refusal(tmp_path / "missing" / "train.jsonl")
    assert "no file matches" in refusal(tmp_path / "*.csv")


def test_a_folder_of_files_is_refused_with_the_glob_to_write(tmp_path):
    assert f"like {tmp_path}/*.jsonl" in refusal(tmp_path)


def test_a_local_file_refuses_what_only_the_hub_has(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(RecipeError, match="`revision` has no meaning"):
        rows_of(path, revision="main")


def test_a_folder_that_save_to_disk_left_damaged_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    assert "cannot be read" in refusal(tmp_path)


def test_reading_a_row_does_not_read_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 3 + b"broken")
    rows = read_rows(Source(path=str(path)))
    assert [next(rows).columns["text"] for _ in range(3)] == ["x"] * 3
    with pytest.raises(DataError, match="row 4"):
        next(rows)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(alphabet='{}[]":,\\ntext0\n\r\x00\u2028é ', max_size=80).map(str.encode)
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"])
def test_any_bytes_give_rows_or_a_data_error(tmp_path, suffix, content):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        rows = rows_of(path)
    except DataError:
        return
    assert all(isinstance(row, dict) for row in rows)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(), min_size=1))
def test_json_lines_written_are_the_rows_read(tmp_path, texts):
    rows = [{"text": text} for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(path) == rows


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects  VBZ O\n\n\n-DOCSTART-\n\nPeter NNP B-PER\n. . O"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("columns", ["spaces", "tabs"])
def test_a_conll_file_s_sentences_are_rows_and_its_documents_are_counted(tmp_path, line_end, columns):
    text = CONLL if columns == "spaces" else CONLL.replace("  ", " ").replace(" ", "\t")
    (tmp_path / "a.conll").write_bytes(text.replace("\n", line_end).encode())
    rows = list(read_rows(Source(path=str(tmp_path / "a.conll"))))
    assert [row.columns for row in rows] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "."], "tags": ["B-PER", "O"]},
    ]
    assert [(row.number, row.line, row.marks) for row in rows] == [(1, 3, 1), (2, 9, 1)]


def test_a_conll_file_of_one_column_has_no_tags(tmp_path):
    (tmp_path / "a.conll").write_text("EU\nrejects\n\n#\n", encoding="utf-8")
    assert rows_of(tmp_path / "a.conll") == [{"tokens": ["EU", "rejects"]}, {"tokens": ["#"]}]


def test_words_of_a_conll_file_come_through_unharmed(tmp_path):
    words = [text.replace("\t", "").replace("\r", "").replace("\n", "") for text in TEXTS] + ["", "\u00a0"]
    text = "".join(f"{word}\tO\n" for word in words)
    (tmp_path / "a.conll").write_bytes(text.encode())
    assert rows_of(tmp_path / "a.conll") == [{"tokens": words, "tags": ["O"] * len(words)}]


def test_a_line_of_a_conll_file_that_does_not_fit_is_refused_with_its_place(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("EU NNP O\n\nhe PRP O\nsaid\n", encoding="utf-8")
    assert refusal(path) == (
        f"{path}: row 2 (line 4): a line of 1 columns, but those before have 3; "
        "write a word, its columns and its tag a line"
    )
    path.write_bytes(b"EU O\n\nca\xe9 O\n")
    assert refusal(path).startswith(f"{path}: row 2 (line 3): not UTF-8 (byte 0xe9")
    path.write_text("\n\n-DOCSTART- O\n", encoding="utf-8")
    assert refusal(path) == f"{path}: there is no row in it"


def test_labels_that_a_data_set_numbers_come_with_their_names(tmp_path):
    kind = datasets.ClassLabel(names=["ham", "spam"])
    features = datasets.Features(
        {
            "label": kind,
            "tags": datasets.List(kind),
            "n": datasets.Value("int64"),
            "text": datasets.Value("string"),
        }
    )
    rows = {"label": [1, 0, -1], "tags": [[0, 1], [], [1]], "n": [1, 0, 1], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    assert rows_of(tmp_path / "saved") == [
        {"label": "spam", "tags": ["ham", "spam"], "n": 1, "text": "a"},
        {"label": "ham", "tags": [], "n": 0, "text": "b"},
        {"label": -1, "tags": ["spam"], "n": 1, "text": "c"},
    ]
