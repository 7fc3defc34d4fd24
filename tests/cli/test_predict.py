"""`peftcli predict`: each row comes out as it went in, with what the adapter says of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.app import run as command
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.run.lock import Lock, write_lock
from tests.conftest import tiny_llama
from tests.data.writers import write_jsonl
from tests.tasks.animals import CLASSES, animals, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of animals that is right about all of them."""
    return trained(tmp_path_factory.mktemp("predict"), "single")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of several lengths without labels, with a column that the format does not know."""
    texts = [{"text": f"the {animal} {'my old ' * at}sits", "id": at} for at, animal in enumerate(CLASSES)]
    return write_jsonl(tmp_path / "rows.jsonl", texts)


def predicted(run: Path, *arguments: Any, status: int = 0) -> None:
    assert command(["predict", "--adapter", str(run), *map(str, arguments)]) == status


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_comes_out_in_its_place_with_a_prediction(
    run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(run, "--input", rows, "--output", tmp_path / "out.jsonl")
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{tmp_path / 'out.jsonl'}: 9 rows" in told.err
    for row, given in zip(read(tmp_path / "out.jsonl"), read(rows), strict=True):
        assert list(row) == ["text", "id", "prediction"]
        assert {**row, "prediction": None} == {**given, "prediction": None}
        assert set(row["prediction"]) == {"label", "score"}
    short = read(tmp_path / "out.jsonl")[0]
    assert short["prediction"]["label"] == "mammal"


def test_the_batch_size_changes_nothing(run: Path, rows: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        predicted(run, "--input", rows, "--output", tmp_path / f"{size}.jsonl", "--batch-size", size)
    one, other = (read(tmp_path / f"{size}.jsonl") for size in (1, 4))
    for left, right in zip(one, other, strict=True):
        assert left["prediction"]["label"] == right["prediction"]["label"]
        assert left["prediction"]["score"] == pytest.approx(right["prediction"]["score"], rel=1e-5)


def test_without_a_file_rows_go_to_standard_output(
    run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted(run, "--input", rows, "--output", tmp_path / "out.jsonl")
    capsys.readouterr()
    predicted(run, "--input", rows)
    assert capsys.readouterr().out == (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    predicted(run, "--input", rows, "--json")
    assert json.loads(capsys.readouterr().out) == read(tmp_path / "out.jsonl")
    predicted(run, "--input", rows, "--output", tmp_path / "out.jsonl", "--json")
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "out.jsonl"), "rows": 9}


def test_the_bare_base_says_something_else(run: Path, rows: Path, tmp_path: Path) -> None:
    predicted(run, "--input", rows, "--output", tmp_path / "adapter.jsonl")
    predicted(run, "--input", rows, "--output", tmp_path / "base.jsonl", "--no-adapter")
    both = zip(read(tmp_path / "adapter.jsonl"), read(tmp_path / "base.jsonl"), strict=True)
    assert all(one["prediction"]["score"] != other["prediction"]["score"] for one, other in both)


def test_labels_of_rows_come_out_as_they_are_and_are_not_read(run: Path, tmp_path: Path) -> None:
    given = [{"text": "the owl sits", "label": label} for label in ("bird", "dragon", None, "", 7.5, ["x"])]
    predicted(run, "--input", write_jsonl(tmp_path / "in.jsonl", given), "--output", tmp_path / "out.jsonl")
    answers = read(tmp_path / "out.jsonl")
    assert [row["label"] for row in answers] == [row["label"] for row in given]
    assert len({json.dumps(row["prediction"]) for row in answers}) == 1


def test_rows_of_another_kind_of_file_are_predicted_too(run: Path, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "n"), ("the owl sits", 1)])
    predicted(run, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["text"], row["n"], row["prediction"]["label"]) == ("the owl sits", "1", "bird")


def test_the_recipe_s_names_of_columns_hold_for_rows_to_predict_on(tmp_path: Path) -> None:
    given = [{"said": row["text"], "is": row["label"]} for row in animals("single", 32, seed=0)]
    source = {
        "path": str(write_jsonl(tmp_path / "train.jsonl", given)),
        "columns": {"text": "said", "label": "is"},
    }
    training = {"num_train_epochs": 1, "eval_strategy": "no"}
    run = trained(tmp_path, "single", data={"train": source}, training=training)
    new = write_jsonl(tmp_path / "in.jsonl", [{"said": "the owl sits"}])
    predicted(run, "--input", new, "--output", tmp_path / "out.jsonl")
    assert set(read(tmp_path / "out.jsonl")[0]) == {"said", "prediction"}


def test_a_row_that_is_too_long_is_cut_and_said_where_training_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = str(write_jsonl(tmp_path / "rows.jsonl", animals("single", 32, seed=0)))
    training = {"num_train_epochs": 1, "eval_strategy": "no"}
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "the owl " * 9}, {"text": "the owl"}])
    for overflow in ("drop", "truncate", "error"):
        folder = tmp_path / overflow
        folder.mkdir()
        data = {"train": {"path": rows}, "max_length": 8, "overflow": overflow}
        run = trained(folder, "single", data=data, training=training)
        capsys.readouterr()
        predicted(run, "--input", long, status=3 if overflow == "error" else 0)
        told = capsys.readouterr()
        if overflow == "error":
            assert "row 1: 20 tokens are more than max_length 8" in told.err
        else:
            assert "1 of 2 rows cut at max_length" in told.err
            assert len(told.out.splitlines()) == 2


def test_what_cannot_be_predicted_is_said_in_one_line_and_nothing_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"

    def says(status: int, *rows: dict[str, Any], path: Path | None = None, to: Path = output) -> str:
        given = path or write_jsonl(tmp_path / "in.jsonl", list(rows))
        capsys.readouterr()
        predicted(run, "--input", given, "--output", to, status=status)
        assert not output.exists()
        return capsys.readouterr().err.splitlines()[-1]

    fine = {"text": "the owl sits"}
    assert says(3, fine, {"text": 3}).endswith("in.jsonl: row 2: text must be text, not int")
    assert "row 2: no column 'text' for type 'classification'" in says(3, fine, {"txt": "the owl"})
    assert "row 2: has the column 'prediction', which the result would overwrite" in says(
        3, fine, {**fine, "prediction": 1}
    )
    assert "there is no row in it" in says(3)
    assert "no such file" in says(3, path=tmp_path / "none.jsonl")
    assert "there is no folder" in says(2, fine, to=tmp_path / "none" / "out.jsonl")
    own = write_jsonl(tmp_path / "own.jsonl", [fine])
    assert "--output is the file of --input" in says(2, path=own, to=own)
    assert read(own) == [fine]


def test_a_folder_without_a_lock_does_not_say_its_task(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = "some/base"
    get_peft_model(tiny_llama(), config).save_pretrained(str(tmp_path / "adapter"))
    predicted(tmp_path / "adapter", "--input", rows, status=4)
    assert "has no recipe.lock.yaml, which says what its task is" in capsys.readouterr().err


def test_an_adapter_that_writes_text_is_for_generate(
    tiny_base: Path, tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(tiny_base)
    get_peft_model(tiny_llama(), config).save_pretrained(str(tmp_path / "adapter"))
    recipe = {
        "base_model": str(tiny_base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA"},
        "data": {"train": [{"path": "x.jsonl"}]},
        "training": {"output_dir": "x"},
    }
    write_lock(tmp_path / "adapter", Lock(recipe, {"name": str(tiny_base)}, {"format": "text"}, {}, None))
    predicted(tmp_path / "adapter", "--input", rows, status=2)
    assert "task is CAUSAL_LM, which generates; use `peftcli generate`" in capsys.readouterr().err
