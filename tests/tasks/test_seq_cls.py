"""Sequence classification: Transformers' loss for every kind of label, the field's metrics, and names that are kept."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, BartConfig, BartModel
from transformers.trainer_pt_utils import LabelSmoother

from peftcli.data.columns import load_format
from peftcli.data.example import Labelled
from peftcli.data.prepare import Prepared, prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.load import resolve_base
from peftcli.tasks.seq_cls import SequenceClassification
from peftcli.tasks.text_batch import added_ids, cut_texts, encode_texts
from tests.bases import ending_tokenizer, letter_tokenizer, tiny_base_for, tiny_bert
from tests.conftest import byte_tokenizer
from tests.data.writers import write_jsonl
from tests.tasks.animals import BASES, WORDS, recipe_of

# Rows of every kind of problem; the texts are of different lengths.
ROWS: dict[str, list[dict[str, Any]]] = {
    "single_label_classification": [
        {"text": "the cat sits", "label": "mammal"},
        {"text": "owl", "label": "bird"},
        {"text": "my old cod eats", "label": "fish"},
    ],
    "multi_label_classification": [
        {"text": "cat owl", "label": ["mammal", "bird"]},
        {"text": "the cod eats", "label": ["fish"]},
        {"text": "sits", "label": []},
    ],
    "regression": [
        {"text": "cat", "label": 1.5},
        {"text": "the owl eats", "label": -2.0},
        {"text": "ide", "label": 3},
    ],
}


def task_of(tokenizer: Any = None, **sections: Any) -> SequenceClassification:
    return SequenceClassification(recipe_of(**sections), tokenizer or letter_tokenizer(WORDS))


def rows_of(task: SequenceClassification, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Encoded training rows, with all labels known."""
    examples = [Labelled(row["text"], row.get("text_pair"), row.get("label")) for row in rows]
    encoded = [row for (row,) in task.encode(examples)]
    task.settle()
    return encoded


def prepared(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    """The rows as training would have them."""
    data = {"train": {"path": str(write_jsonl(folder / "rows.jsonl", rows))}} | sections.pop("data", {})
    recipe = recipe_of(data=data, **sections)
    task = SequenceClassification(recipe, letter_tokenizer(WORDS))
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=512)


def both_base(folder: Path) -> Any:
    """An encoder and a decoder, which classifies by the last of the decoder's tokens that ends a text."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "vocab_size": 259, "pad_token_id": 256, "eos_token_id": 258}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_ffn_dim": 32, f"{half}_attention_heads": 2}
    BartModel(BartConfig(**sizes, decoder_start_token_id=258)).save_pretrained(folder)
    ending_tokenizer().save_pretrained(folder)
    return ending_tokenizer()


@pytest.fixture(scope="module", params=[*BASES, "both"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, tokenizer)."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, (BASES | {"both": both_base})[request.param](folder)


def model_for(task: SequenceClassification, folder: Path) -> Any:
    options = task.model_options()
    options.pop("head")
    return AutoModelForSequenceClassification.from_pretrained(folder, **options).double().eval()


# The loss.


@pytest.mark.parametrize("kind", ROWS)
def test_the_loss_is_transformers_own(kind: str, base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    batch = task.collate(rows_of(task, ROWS[kind]))
    assert task.problem_type == kind
    model = model_for(task, folder)
    total, count = task.loss(model, batch)
    assert count == 3
    labels = batch["labels"].double() if batch["labels"].is_floating_point() else batch["labels"]
    theirs = model(**batch | {"labels": labels}).loss
    torch.testing.assert_close(total / count, theirs, rtol=1e-12, atol=1e-12)


def test_labels_are_smoothed_as_transformers_does(base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    batch = task.collate(rows_of(task, ROWS["single_label_classification"]))
    model = model_for(task, folder)
    total, count = task.loss(model, batch, label_smoothing=0.1)
    theirs = LabelSmoother(epsilon=0.1)(model(**batch), batch["labels"])
    torch.testing.assert_close(total / count, theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", ROWS)
def test_padding_changes_nothing(kind: str, base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    rows = rows_of(task, ROWS[kind])
    model = model_for(task, folder)
    together, _ = task.loss(model, task.collate(rows))
    alone = sum(task.loss(model, task.collate([row]))[0] for row in rows)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_a_loss_of_half_precision_is_summed_in_float32(base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    batch = task.collate(rows_of(task, ROWS["single_label_classification"]))
    assert task.loss(model_for(task, folder).bfloat16(), batch)[0].dtype == torch.float32


def test_a_batch_is_padded_on_the_right_and_knows_pairs() -> None:
    task = task_of()
    rows = rows_of(task, [{"text": "cat", "text_pair": "the dog", "label": 0}, {"text": "owl", "label": 1}])
    batch = task.collate(rows)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch["input_ids"][1, 3:].tolist() == [0, 0, 0]
    assert batch["labels"].tolist() == [0, 1]


# Labels.


@pytest.mark.parametrize(
    ("given", "names", "numbers"),
    [
        (["spam", "ham", "spam"], ["ham", "spam"], [1, 0, 1]),
        ([2, 0, 2], ["0", "1", "2"], [2, 0, 2]),
        (["10", "9", "10"], ["9", "10"], [1, 0, 1]),
    ],
    ids=["names", "numbers", "numbers as text"],
)
def test_labels_are_ordered_whatever_the_order_of_the_rows(
    given: list[Any], names: list[str], numbers: list[int]
) -> None:
    task = task_of()
    rows = rows_of(task, [{"text": "cat", "label": label} for label in given])
    assert task.labels.names == names
    assert task.collate(rows)["labels"].tolist() == numbers
    assert task.model_options()["id2label"] == dict(enumerate(names))


def test_labels_that_the_recipe_names_keep_its_order_and_numbers_count_them() -> None:
    task = task_of(task={"labels": ["low", "high"]})
    rows = rows_of(task, [{"text": "cat", "label": label} for label in ("high", 0, 1)])
    assert task.collate(rows)["labels"].tolist() == [1, 0, 1]


def test_stars_from_1_to_5_stay_themselves_where_evaluation_writes_them_as_numbers() -> None:
    task = task_of()
    rows_of(task, [{"text": "cat", "label": str(star)} for star in range(1, 6)])
    (row,) = rows_of(task, [{"text": "cat", "label": 5}])
    assert task.labels.names[task.collate([row])["labels"][0]] == "5"
    with pytest.raises(DataError, match="the label 0 is none of the 5"):
        rows_of(task, [{"text": "cat", "label": 0}])


def test_numbers_as_text_are_known_where_training_had_numbers() -> None:
    task = task_of()
    rows_of(task, [{"text": "cat", "label": number} for number in (0, 1, 2)])
    (row,) = rows_of(task, [{"text": "cat", "label": "2"}])
    assert task.collate([row])["labels"].tolist() == [2]


def test_several_labels_are_flags_in_the_batch() -> None:
    task = task_of()
    batch = task.collate(rows_of(task, ROWS["multi_label_classification"]))
    assert task.labels.names == ["bird", "fish", "mammal"]
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_a_csv_file_s_labels_are_names_and_with_a_problem_type_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,score\ncat,1.5\nowl,2\n", encoding="utf-8")
    source = {"path": str(tmp_path / "rows.csv"), "columns": {"label": "score"}}
    recipe = recipe_of(data={"train": source}, task={"problem_type": "regression"})
    task = SequenceClassification(recipe, letter_tokenizer(WORDS))
    found = prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=None)
    assert task.collate(list(found.train))["labels"].tolist() == [1.5, 2.0]
    assert "note      regression" in found.report.lines()
    task = SequenceClassification(recipe_of(data={"train": source}), letter_tokenizer(WORDS))
    found = prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=None)
    assert "note      single label classification, 2 labels: 1.5, 2" in found.report.lines()


def test_a_task_with_its_labels_goes_to_worker_processes() -> None:
    task = task_of()
    rows = rows_of(task, ROWS["single_label_classification"])
    again = pickle.loads(pickle.dumps(task))
    for name, tensor in task.collate(rows).items():
        assert torch.equal(tensor, again.collate(rows)[name])


# What is refused.

CAT = {"text": "cat", "label": "a"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "cat"}, "no column 'label'"),
        ({"text": None, "label": "a"}, "text must be text, not null"),
        ({"text": "cat", "label": None}, "label must be a name or a number, not null"),
        ({"text": "cat", "label": ""}, "label must be a name or a number, not empty"),
        ({"text": "cat", "label": True}, "label must be a name or a number, not bool"),
        ({"text": "cat", "label": {"a": 1}}, "label must be a name or a number, not dict"),
        ({"text": "cat", "label": 1.5}, "label is 1.5, a number with a point, but this is a single_label_"),
        ({"text": "cat", "label": ["a"]}, "label is ['a'], a list of labels, but this is a single_label_"),
        ({"text": "cat", "text_pair": 7, "label": "a"}, "text_pair must be text, not int"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: ") as caught:
        prepared(tmp_path, [CAT, row])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (["a", "b", "a"], "label has 'a' twice; name the labels that hold, not a flag for each"),
        ([1.0, 0.0], r"label\[0\] must be a name or a number, not float"),
    ],
)
def test_flags_are_not_taken_for_labels(tmp_path: Path, label: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=rf"row 2: {says}"):
        prepared(tmp_path, [{"text": "cat", "label": ["a"]}, {"text": "cat", "label": label}])


def test_what_is_no_number_is_refused_in_a_regression(tmp_path: Path) -> None:
    number = {"text": "cat", "label": 0.5}
    for label in ("much", [1]):
        with pytest.raises(DataError, match=r"row 2: label is .*, and no number, but this is a regression"):
            prepared(tmp_path, [number, {"text": "owl", "label": label}])
    (tmp_path / "rows.jsonl").write_text('{"text": "cat", "label": NaN}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: label must be a finite number, not nan"):
        prepare_file(tmp_path)


def prepare_file(folder: Path) -> Prepared:
    recipe = recipe_of(data={"train": {"path": str(folder / "rows.jsonl")}})
    task = SequenceClassification(recipe, letter_tokenizer(WORDS))
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=None)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", "a"], "every row has the same label, 'a'"),
        (["a", 1], "labels are names and numbers, such as 'a' and 1; write one kind"),
        ([-1, 1], "labels that are numbers count from 0; there is a -1"),
        ([0, 2_000_000], "2,000,000 is too large for one"),
    ],
)
def test_labels_that_make_no_set_are_refused(tmp_path: Path, labels: list[Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, [{"text": "cat", "label": label} for label in labels])
    assert says in str(caught.value)


def test_a_label_that_training_did_not_have_is_refused_in_evaluation_with_its_row(tmp_path: Path) -> None:
    rows = [{"text": "cat", "label": label} for label in ("mammal", "bird")]
    held = write_jsonl(tmp_path / "eval.jsonl", [*rows, {"text": "cod", "label": "birds"}])
    with pytest.raises(DataError, match=r"eval.jsonl: row 3: the label 'birds' is none of the 2") as caught:
        prepared(tmp_path, rows, data={"eval": {"path": str(held)}})
    assert "did you mean 'bird'?" in str(caught.value)


def test_settings_without_a_meaning_are_refused(tmp_path: Path) -> None:
    smoothing = {"training": {"label_smoothing_factor": 0.1}}
    for kind in ("multi_label_classification", "regression"):
        with pytest.raises(RecipeError, match=f"label_smoothing_factor: has no meaning for {kind}"):
            prepared(tmp_path, ROWS[kind], **smoothing)
        with pytest.raises(RecipeError, match="label_smoothing_factor"):
            task_of(task={"problem_type": kind}, **smoothing)
    with pytest.raises(RecipeError, match=r"task.labels: a regression has none"):
        prepared(tmp_path, ROWS["regression"], task={"labels": ["a", "b"]})
    with pytest.raises(RecipeError, match=r"task.labels: 'a' stands there twice"):
        task_of(task={"labels": ["a", "b", "a"]})


def test_streamed_rows_need_the_labels_names(tmp_path: Path) -> None:
    streaming = {"data": {"streaming": True}, "training": {"max_steps": 1}}
    rows = [{"text": "cat", "label": ["a"]}, {"text": "owl", "label": []}]
    with pytest.raises(RecipeError, match=r"task.labels: name the labels; streamed rows are not known"):
        streamed(tmp_path, rows, **streaming)
    found = streamed(tmp_path, rows, task={"labels": ["a", "b"]}, **streaming)
    assert "note      multi label classification, 2 labels: a, b" in found.report.lines()
    found = streamed(tmp_path, ROWS["regression"], task={"problem_type": "regression"}, **streaming)
    assert "note      regression" in found.report.lines()


def streamed(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    data = {"train": {"path": str(write_jsonl(folder / "rows.jsonl", rows))}} | sections.pop("data")
    return prepared(folder, rows, data=data, **sections)


def test_a_text_without_a_token_is_refused() -> None:
    with pytest.raises(DataError, match="text is empty: it has no token"):
        rows_of(task_of(byte_tokenizer()), [{"text": "", "label": "a"}])


def test_a_base_that_does_not_know_the_tokenizer_s_tokens_is_refused() -> None:
    task = task_of()
    rows_of(task, ROWS["single_label_classification"])
    task.check_model(tiny_bert(len(task.processor)))
    with pytest.raises(ModelError, match="and the base knows 100: they do not belong together"):
        task.check_model(tiny_bert(100))


# Rows that are too long.


@settings(deadline=None, max_examples=60)
@given(
    first=st.lists(st.sampled_from([*WORDS, "世"]), max_size=12),
    second=st.none() | st.lists(st.sampled_from(WORDS), max_size=12),
    limit=st.integers(3, 20),
)
def test_a_row_is_cut_as_its_tokenizer_would_cut_it(
    first: list[str], second: list[str] | None, limit: int
) -> None:
    tokenizer = letter_tokenizer(WORDS)
    text, pair = [" ".join(first)], None if second is None else [" ".join(second)]
    (row,) = encode_texts(tokenizer, text, pair)
    cut = cut_texts(row, limit, added_ids(tokenizer))
    theirs = tokenizer(text, pair, truncation=True, max_length=limit)
    assert [cut["input_ids"].tolist()] == theirs["input_ids"]
    assert [cut["token_type_ids"].tolist()] == theirs["token_type_ids"]


def test_cutting_leaves_labels_alone_even_where_there_are_as_many_as_tokens() -> None:
    task = task_of()
    (row, _) = rows_of(task, [{"text": "cat", "label": ["a", "b", "c"]}, {"text": "owl", "label": ["d"]}])
    assert len(row["input_ids"]) == len(row["label"])
    assert task.cut(row, 2)["label"].tolist() == row["label"].tolist()


def test_a_row_that_is_cut_is_counted_and_else_refused(tmp_path: Path) -> None:
    rows = [{"text": "the old cat sits", "label": "a"}, {"text": "owl", "label": "b"}]
    with pytest.raises(DataError, match=r"row 1: 6 tokens are more than max_length 4"):
        prepared(tmp_path, rows, data={"max_length": 4})
    found = prepared(tmp_path, rows, data={"max_length": 4, "overflow": "truncate"})
    assert [len(row["input_ids"]) for row in found.train] == [4, 3]
    assert any("1 of 2 rows cut at max_length" in line for line in found.report.lines())


# Metrics.


def scored(task: SequenceClassification, kind: str, records: list[Any]) -> dict[str, float]:
    task.problem_type = kind
    return task.score(records)


def test_the_metrics_are_the_libraries() -> None:
    task = task_of()
    draw = np.random.default_rng(0)
    predicted, true = draw.integers(0, 4, 50), draw.integers(0, 4, 50)
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    assert scored(task, "single_label_classification", pairs) == {
        "accuracy": accuracy_score(true, predicted),
        "f1": f1_score(true, predicted, average="macro"),
        "matthews_correlation": matthews_corrcoef(true, predicted),
    }
    predicted, true = draw.integers(0, 2, (50, 3)), draw.integers(0, 2, (50, 3))
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    assert scored(task, "multi_label_classification", pairs) == {
        "accuracy": accuracy_score(true, predicted),
        "f1": f1_score(true, predicted, average="macro"),
        "f1_micro": f1_score(true, predicted, average="micro"),
    }
    predicted, true = draw.normal(size=50), draw.normal(size=50)
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    assert scored(task, "regression", pairs) == {"pearson": pearsonr(predicted, true).statistic}


def test_metrics_of_few_rows_warn_of_nothing() -> None:
    task = task_of()
    assert scored(task, "single_label_classification", [(1, 1)])["accuracy"] == 1
    assert scored(task, "multi_label_classification", [([0, 0], [0, 0])])["f1"] == 0
    assert np.isnan(scored(task, "regression", [(1.0, 2.0), (1.0, 3.0)])["pearson"])


def test_without_their_libraries_the_loss_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftcli.tasks.measures.importlib.util.find_spec", lambda name: None)
    task = task_of()
    rows_of(task, ROWS["single_label_classification"])
    assert task.score([(1, 1)]) == {}
    assert "accuracy and f1 will not be computed: scikit-learn is not installed" in task.remarks()[0]
    task = task_of()
    rows_of(task, ROWS["regression"])
    assert task.score([(1.0, 1.0)]) == {}
    assert "pearson will not be computed: scipy is not installed" in task.remarks()[0]


def test_what_is_to_be_predicted_is_not_read_of_rows_to_predict_on() -> None:
    predicting = load_format("classification").without_targets()
    for label in (None, "", {"a": 1}, "mammal"):
        assert predicting({"text": "cat", "label": label}) == Labelled("cat", None, None)


def test_every_base_for_the_task_is_loaded_with_a_head_of_its_own(tmp_path: Path) -> None:
    task = task_of(letter_tokenizer())
    rows_of(task, ROWS["single_label_classification"])
    loaded = task.load_model(resolve_base(str(tiny_base_for("SEQ_CLS", tmp_path))))
    assert task.heads(loaded) == ["classifier"]
