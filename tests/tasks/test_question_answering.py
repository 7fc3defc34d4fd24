"""Laws of QUESTION_ANS: Transformers' loss, SQuAD's metrics, every answer where it stands, and what is refused."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.text import SQuAD
from transformers import AutoModelForQuestionAnswering, CanineTokenizer

from peftcli.data.columns import load_format
from peftcli.data.example import Answer, Question
from peftcli.data.prepare import Prepared, prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.load import load_model, resolve_base
from peftcli.tasks.question_answering import QuestionAnswering
from peftcli.tasks.spans import Span
from tests.bases import ending_tokenizer, letter_tokenizer, tiny_bert, tiny_mt5
from tests.conftest import byte_tokenizer, tiny_llama
from tests.data.writers import merging_tokenizer, write_jsonl
from tests.tasks.animals import WORDS, recipe_of
from tests.tasks.stories import stories

CONTEXT = "the cat sits the old owl eats the cod my hen runs"


def asked(answer: str | None, question: str = "owl", context: str = CONTEXT) -> Question:
    """A question whose answer stands in the context once; the empty text is none."""
    found = [Answer(answer, context.index(answer))] if answer else []
    return Question(question, context, None if answer is None else found)


ROWS = [asked("old owl"), asked(""), asked("cod my hen", "my hen"), asked("the", "the old cat runs")]


def task_of(tokenizer: Any = None, **sections: Any) -> QuestionAnswering:
    return QuestionAnswering(
        recipe_of(task_type="QUESTION_ANS", **sections), tokenizer or letter_tokenizer(WORDS), tiny_config()
    )


def tiny_config() -> Any:
    return tiny_bert().config


def rows_of(task: QuestionAnswering, examples: list[Question]) -> list[dict[str, Any]]:
    return [row for rows in task.encode(examples) for row in rows]


def prepared(folder: Path, rows: list[Any], tokenizer: Any = None, **sections: Any) -> Prepared:
    """The rows as training would have them."""
    path = write_jsonl(folder / "rows.jsonl", rows)
    recipe = recipe_of(
        task_type="QUESTION_ANS", data={"train": {"path": str(path)}} | sections.pop("data", {}), **sections
    )
    task = QuestionAnswering(recipe, tokenizer or letter_tokenizer(WORDS), tiny_config())
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=512)


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


# The loss.


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4)).eval()


def bart() -> Any:
    from transformers import BartConfig, BartModel

    torch.manual_seed(0)
    layers = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    tokens = {"pad_token_id": 256, "eos_token_id": 258, "decoder_start_token_id": 258}
    return BartModel(BartConfig(vocab_size=300, **layers, **heads, **sizes, **tokens)).eval()


def roberta() -> Any:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return RobertaModel(RobertaConfig(vocab_size=400, pad_token_id=0, **sizes)).eval()


BASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "BERT": (lambda: tiny_bert(len(letter_tokenizer(WORDS))), lambda: letter_tokenizer(WORDS)),
    "RoBERTa": (roberta, merging_tokenizer),
    "Llama": (lambda: tiny_llama().model, byte_tokenizer),
    "GPT-2": (gpt2, merging_tokenizer),
    "BART": (bart, ending_tokenizer),
    "mT5": (tiny_mt5, ending_tokenizer),
}


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model, tokenizer), the model with a head that was drawn."""
    make, tokenizer = BASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make().save_pretrained(folder)
    torch.manual_seed(0)
    options = task_of(tokenizer()).model_options()
    loaded = load_model(resolve_base(str(folder)), AutoModelForQuestionAnswering, **options)
    assert task_of(tokenizer()).heads(loaded) == ["qa_outputs"]
    return loaded.model.double().eval(), tokenizer()


def test_the_loss_is_transformers_own(base: Any) -> None:
    """Of rows alone: among padding theirs has the padding's logits, too."""
    model, tokenizer = base
    task = task_of(tokenizer, data={"max_length": 75}, task={"doc_stride": 4})
    rows = rows_of(task, ROWS[:2])
    assert len(rows) >= 2
    for row in rows:
        batch = task.collate([row])
        total, count = task.loss(model, batch)
        assert count == 1
        start, end = batch["spans"].T
        with torch.no_grad():
            theirs = model(**model_inputs(batch), start_positions=start, end_positions=end).loss
        torch.testing.assert_close(total, theirs.double(), rtol=1e-6, atol=0)


def test_padding_changes_nothing(base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer)
    rows = rows_of(task, ROWS)
    assert len({len(row["input_ids"]) for row in rows}) > 1
    with torch.no_grad():
        together, count = task.loss(model, task.collate(rows))
        alone = sum(task.loss(model, task.collate([row]))[0] for row in rows)
        spans = task.predict(model, task.collate(rows))
        each = [task.predict(model, task.collate([row]))[0] for row in rows]
    assert count == len(rows)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)
    for one, other in zip(spans, each, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert one.odds == pytest.approx(other.odds, abs=1e-5)
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_a_checkpoint_whose_weights_the_class_for_this_task_does_not_find_is_refused(tmp_path: Path) -> None:
    """Transformers calls a Llama's body `transformer` here and `model` elsewhere; nothing is drawn in its place."""
    tiny_llama().save_pretrained(tmp_path)
    options = task_of().model_options()
    with pytest.raises(
        ModelError, match=r"lacks 20 weights that a LlamaForQuestionAnswering needs \(first: tran"
    ):
        load_model(resolve_base(str(tmp_path)), AutoModelForQuestionAnswering, **options)


def test_a_base_with_other_labels_gets_a_head_of_two(tmp_path: Path) -> None:
    from transformers import BertForTokenClassification

    config = tiny_bert().config
    config.num_labels = 5
    BertForTokenClassification(config).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    task = QuestionAnswering(recipe_of(task_type="QUESTION_ANS"), letter_tokenizer(), config)
    loaded = load_model(resolve_base(str(tmp_path)), task.auto_class(), **task.model_options())
    assert loaded.model.qa_outputs.out_features == 2
    assert task.heads(loaded) == ["qa_outputs"]
    assert task.base_options() == {"num_labels": 2}
    assert task_of().base_options() == {}


# Windows.


def test_a_window_without_the_whole_answer_is_trained_to_say_so() -> None:
    task = task_of(data={"max_length": 9}, task={"doc_stride": 2})
    rows = rows_of(task, [asked("old owl"), asked("")])
    tokens = task.processor.convert_ids_to_tokens
    assert [tokens(row["input_ids"])[3:-1] for row in rows[:4]] == [
        ["the", "cat", "sits", "the", "old"],
        ["the", "old", "owl", "eats", "the"],
        ["eats", "the", "cod", "my", "hen"],
        ["my", "hen", "runs"],
    ]
    assert [row["span"].tolist() for row in rows] == [[0, 0], [4, 5], *[[0, 0]] * 6]
    assert [int(row["example"][0]) for row in rows] == [0] * 4 + [1] * 4
    assert {row["context"] for row in rows} == {CONTEXT}


def test_no_window_passes_the_limit_whatever_sets_it() -> None:
    long = asked("cod", context=" ".join(["the cat sits"] * 300 + ["cod"]))
    for sections, limit in (
        ({}, 512),
        ({"data": {"max_length": 100}}, 100),
        ({"data": {"max_length": 4000}}, 512),
        ({"adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20}}, 492),
    ):
        task = task_of(**sections)
        lengths = [len(row["input_ids"]) for row in rows_of(task, [long])]
        assert task.limit == max(lengths) == limit
        assert len(lengths) > 1


def test_examples_have_numbers_of_their_own_also_after_an_error() -> None:
    task = task_of()
    bad = Question("owl", "cat \u200d", [Answer("\u200d", 4)])
    with pytest.raises(DataError):
        task.encode([ROWS[0], bad])
    numbers = [int(row["example"][0]) for each in (ROWS[:1], ROWS[1:]) for row in rows_of(task, each)]
    assert sorted(set(numbers)) == numbers
    task.settle()
    assert "1 of 4 questions have no answer" in task.notes()


def test_the_token_for_no_answer_is_cls_else_bos_else_the_first() -> None:
    from tests.tasks.test_windows import doubling_tokenizer
    from tests.tasks.test_windows import ending_tokenizer as cls_behind

    answerless = asked("", context="a b ab")
    for tokenizer, place in (
        (letter_tokenizer(), 0),
        (doubling_tokenizer(), 0),
        (cls_behind(), -1),
        (merging_tokenizer(), 0),
    ):
        (row,) = rows_of(task_of(tokenizer), [answerless])
        assert row["span"].tolist() == [row["none"][0]] * 2
        assert row["none"][0] == range(len(row["input_ids"]))[place]
        assert row["starts"][row["none"][0]] == -1


def test_a_batch_says_what_may_be_an_answer_and_goes_to_worker_processes() -> None:
    task = task_of()
    rows = rows_of(task, [asked("old owl"), asked("owl", context="owl")])
    batch = pickle.loads(pickle.dumps(task)).collate(rows)
    assert batch["attention_mask"].sum(1).tolist() == [16, 5]
    assert batch["candidates"].sum(1).tolist() == [12, 1]
    assert batch["candidates"][1].nonzero().flatten().tolist() == [3]
    assert batch["spans"].tolist() == [[7, 8], [3, 3]]
    assert "spans" not in task.collate(rows_of(task, [asked(None)]))


# What is said of rows.


def row(question: str, context: str, *answers: tuple[str, int]) -> dict[str, Any]:
    texts, starts = ([answer[at] for answer in answers] for at in (0, 1))
    return {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


GOOD = row("owl", CONTEXT, ("old owl", 17))


def test_what_is_not_learnt_as_it_stands_is_counted(tmp_path: Path) -> None:
    rows = [
        GOOD,
        row("owl", CONTEXT, ("ow", 21)),  # a part of a token
        row("owl", CONTEXT, ("the cat sits the old owl", 0)),  # in no window
        row("owl", CONTEXT),
    ]
    options = {"max_answer_length": 5, "doc_stride": 2, "handle_impossible_answer": False}
    said = "\n".join(prepared(tmp_path, rows, data={"max_length": 9}, task=options).report.lines())
    assert "train     16 rows" in said
    assert "note      4 of 4 contexts are longer than 9 tokens with their questions" in said
    assert "a row each (16 rows in all)" in said
    assert "note      1 of 4 questions have no answer" in said
    assert "note      a prediction is never empty" in said
    assert "warning   1 answers begin or end within a token" in said
    assert "warning   1 answers stand in no window as a whole" in said
    assert "warning   1 answers have more than 5 tokens" in said
    assert "warning   1 questions have no answer, and are given one (task.handle_impossible_answer)" in said


def test_rows_that_are_learnt_as_they_stand_have_no_warning(tmp_path: Path) -> None:
    found = prepared(tmp_path, [GOOD, row("owl", CONTEXT)])
    assert found.report.notes == ["1 of 2 questions have no answer", "predictions may be empty"]
    assert found.report.warnings == []


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"answers": None}, "answers is null; write {text: [...], answer_start: [...]}"),
        ({"answers": "old owl"}, "answers is text; write"),
        ({"answers": 3}, "answers is int; write"),
        ({"answers": {"text": ["x"]}}, "answers is an object of text; write"),
        ({"answers": {"text": "x", "answer_start": 0}}, "must be lists; write"),
        ({"answers": {"text": ["the"], "answer_start": []}}, "has 1 in text and 0 in answer_start"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "answers.text[0] is empty; write"),
        ({"answers": {"text": [4], "answer_start": [0]}}, "answers.text[0] must be text, not int"),
        ({"answers": {"text": ["the"], "answer_start": ["0"]}}, "must be a whole number, not '0'"),
        ({"answers": {"text": ["the"], "answer_start": [True]}}, "must be a whole number, not True"),
        (
            {"answers": {"text": ["old owl"], "answer_start": [18]}},
            "answers.text[0] is 'old owl', but at its answer_start, 18, the context has 'ld owl '; it stands at 17",
        ),
        ({"answers": {"text": ["the"], "answer_start": [-1]}}, "-1, the context has ''; it stands at 0"),
        ({"answers": {"text": ["Owl"], "answer_start": [21]}}, "it stands nowhere in the context"),
        ({"answers": [{"text": "owl"}]}, "must be a whole number, not None"),
        ({"question": " "}, "question is empty"),
        ({"context": "\n"}, "context is empty"),
        ({"context": None}, "context must be text, not null"),
        ({"question": "\u200d"}, "the question has no token"),
        ({"question": "old " * 40}, "the question leaves 0 of 40 tokens (data.max_length) to the context"),
        ({"question": "old " * 30, "context": CONTEXT + " sits" * 9}, "share 20 of them (task.doc_stride)"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, broken: dict[str, Any], says: str) -> None:
    sections = {"data": {"max_length": 40}, "task": {"doc_stride": 20}}
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: ") as caught:
        prepared(tmp_path, [GOOD, {**GOOD, **broken}], **sections)
    assert says in str(caught.value)


def test_answers_may_be_a_list_as_in_squad_s_own_files_and_predictions_need_none() -> None:
    read = load_format("qa")
    listed = {**GOOD, "answers": [{"text": "old owl", "answer_start": 17}]}
    assert read(listed) == read(GOOD) == Question("owl", CONTEXT, [Answer("old owl", 17)])
    assert read({**GOOD, "answers": []}).answers == read(row("owl", CONTEXT)).answers == []
    for given in ({"question": "a", "context": "b"}, {**GOOD, "answers": "broken"}):
        assert read.without_targets()(given).answers is None


def test_characters_are_counted_as_python_counts_them(tmp_path: Path) -> None:
    context = "𠮷 👩‍👩‍👧 e\u0301tude — 日本 owl"
    at = context.index("owl")
    found = prepared(tmp_path, [row("who", context, ("owl", at))], byte_tokenizer())
    (only,) = found.train
    first, last = only["span"]
    assert context[only["starts"][first] : only["ends"][last]] == "owl"
    with pytest.raises(DataError, match=rf"it stands at {at} \(characters count from 0, not bytes\)"):
        prepared(tmp_path, [row("who", context, ("owl", len(context[:at].encode())))], byte_tokenizer())


def test_streamed_rows_need_a_word_on_answers_that_are_missing(tmp_path: Path) -> None:
    streaming = {"data": {"streaming": True}, "training": {"max_steps": 1}}
    with pytest.raises(RecipeError, match=r"task.handle_impossible_answer: say whether contexts may have no"):
        prepared(tmp_path, [GOOD], **streaming)
    streaming["data"]["train"] = {"path": str(tmp_path / "rows.jsonl")}
    found = prepared(tmp_path, [GOOD], task={"handle_impossible_answer": True}, **streaming)
    assert found.report.notes == ["predictions may be empty"]


def test_what_the_task_cannot_do_is_refused() -> None:
    with pytest.raises(ModelError, match="the tokenizer CanineTokenizer has no offsets"):
        task_of(CanineTokenizer())
    with pytest.raises(RecipeError, match=r"training.label_smoothing_factor: .* leave it out"):
        task_of(training={"label_smoothing_factor": 0.1})
    prompt = recipe_of(
        task_type="QUESTION_ANS", adapter={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    )
    with pytest.raises(RecipeError, match=r"PROMPT_TUNING puts vectors .* decoder needs; choose another"):
        QuestionAnswering(prompt, ending_tokenizer(), bart().config)
    task = task_of()
    rows_of(task, ROWS)
    with pytest.raises(ModelError, match="and the base knows 100: they do not belong together"):
        task.check_model(tiny_bert(100))


# Metrics and answers.


def record(example: int, text: str, answers: list[str], odds: float = 1.0) -> Any:
    return example, Span(0, len(text), odds, 0.5, 0.5), text, answers


def test_the_metrics_are_squad_s_of_each_question_s_best_window() -> None:
    task = task_of(task={"handle_impossible_answer": False})
    records = [
        record(4, "wrong", ["the old owl", "An Owl!"], odds=1.0),
        record(7, "cod", ["eel"], odds=-3.0),
        record(4, "owl", ["the old owl", "An Owl!"], odds=3.0),
        record(9, "my old hen", ["old hen"], odds=0.0),
    ]
    random.Random(0).shuffle(records)
    theirs = SQuAD()
    said = {4: "owl", 7: "cod", 9: "my old hen"}
    theirs.update(
        [{"id": str(at), "prediction_text": text} for at, text in said.items()],
        [
            {"id": str(at), "answers": {"text": known, "answer_start": [0] * len(known)}}
            for at, known in {each[0]: each[3] for each in records}.items()
        ],
    )
    expected = {name: float(value) / 100 for name, value in theirs.compute().items()}
    assert task.score(records) == pytest.approx(expected)
    assert expected["exact_match"] == pytest.approx(1 / 3)


def test_no_answer_is_right_where_there_is_none() -> None:
    task = task_of(task={"handle_impossible_answer": True})
    assert task.score([record(0, "cod", [], odds=-1.0)]) == {"exact_match": 1, "f1": 1}
    assert task.score([record(0, "cod", [], odds=1.0)]) == {"exact_match": 0, "f1": 0}
    assert task.score([record(0, "cod", ["cod"], odds=-1.0)]) == {"exact_match": 0, "f1": 0}
    never = task_of(task={"handle_impossible_answer": False})
    assert never.score([record(0, "cod", ["cod"], odds=-1.0)]) == {"exact_match": 1, "f1": 1}


def test_an_answer_is_a_part_of_the_context_letter_by_letter() -> None:
    context = "  The  Old Owl,\n\n𠮷 eats"
    task = task_of(byte_tokenizer(), task={"handle_impossible_answer": True})
    rows = rows_of(task, [asked(None, context=context)])
    spans = [Span(7, 14, 2.0, 0.75, 0.1)]
    assert task.answer(rows, spans, None) == {"answer": "Old Owl", "start": 7, "end": 14, "score": 0.75}
    spans = [Span(7, 14, -2.0, 0.1, 0.75)]
    assert task.answer(rows, spans, None) == {"answer": "", "start": None, "end": None, "score": 0.75}


def test_without_its_library_the_loss_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftcli.tasks.measures.importlib.util.find_spec", lambda name: None)
    task = task_of()
    assert task.score([record(0, "cod", ["cod"])]) == {}
    assert "exact_match and f1 will not be computed: torchmetrics is not installed" in task.remarks()[0]


def test_encoded_rows_are_integers_that_are_kept_in_one_array_a_column() -> None:
    task = task_of()
    for each in rows_of(task, [Question(**{**r, "answers": []}) for r in stories(3, seed=0)]):
        kept = {name for name, value in each.items() if isinstance(value, np.ndarray)}
        assert kept == {"input_ids", "token_type_ids", "starts", "ends", "example", "none", "span"}
        assert {each[name].dtype for name in kept} == {np.dtype(np.int32)}
