"""Sequence to sequence: Transformers' loss in every family, a row's two limits, languages, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig
from transformers.trainer_pt_utils import LabelSmoother

from peftcli.data.example import Pair
from peftcli.data.prepare import Prepared, prepare
from peftcli.data.tokens import IGNORED
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.tasks.head import LossHead
from peftcli.tasks.languages import language_settings
from peftcli.tasks.seq2seq import SequenceToSequence
from tests.bases import ending_tokenizer, tiny_mt5
from tests.data.writers import write_jsonl
from tests.tasks.translators import FAMILIES, mbart50_tokenizer, recipe_of, word_tokenizer

PAIRS = [
    Pair("one two red", "eins zwei rot"),
    Pair("cat", "katze"),
    Pair("six blue fish bird", "sechs blau fisch vogel"),
]


def rows_of(task: SequenceToSequence, pairs: list[Pair] = PAIRS) -> list[dict[str, Any]]:
    return [row for (row,) in task.encode(pairs)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(task, model in float64) of a family, loaded as the Hub's are."""
    make, languages = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder)[0].save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).double()
    recipe = recipe_of(task=languages, training={"predict_with_generate": True, "generation_max_length": 10})
    return SequenceToSequence(recipe, tokenizer, model.config), model


@pytest.fixture
def word_task(tmp_path: Path) -> SequenceToSequence:
    return SequenceToSequence(recipe_of(), word_tokenizer(tmp_path), BartConfig())


# The loss.


def test_the_loss_is_transformers_own(family: Any) -> None:
    task, model = family
    rows = rows_of(task)
    task.check_model(model)
    batch = task.collate(rows)
    total, count = task.loss(model, batch)
    assert count.item() == sum(len(row["labels"]) for row in rows)
    torch.testing.assert_close(total / count, model(**batch).loss, rtol=1e-12, atol=1e-12)


def test_labels_are_smoothed_as_transformers_does(family: Any) -> None:
    task, model = family
    batch = task.collate(rows_of(task))
    theirs = LabelSmoother(epsilon=0.1)(model(**batch), batch["labels"])
    total, count = task.loss(model, batch, label_smoothing=0.1)
    # Theirs adds the smoothed part up in float32, whatever the model's type.
    torch.testing.assert_close(total / count, theirs, rtol=1e-7, atol=0)


def test_the_loss_in_the_place_of_the_head_is_that_of_its_logits(family: Any) -> None:
    task, model = family[0], copy.deepcopy(family[1]).requires_grad_(False)
    trained = next(each for each in model.get_decoder().modules() if type(each) is nn.Linear).weight
    trained.requires_grad_()
    batch = task.collate(rows_of(task))
    plain, _ = task.loss(model, batch, label_smoothing=0.1)
    seen = []
    with task.readied(model), _each_call_of(LossHead, seen):
        found, count = task.loss(model, batch, label_smoothing=0.1)
    # The others add something to their logits.
    assert len(seen) == (
        type(model).__name__ in {"T5ForConditionalGeneration", "MT5ForConditionalGeneration"}
    )
    assert count == (batch["labels"] != IGNORED).sum()
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(each, trained)[0] for each in (found, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@contextmanager
def _each_call_of(kind: type[nn.Module], seen: list[nn.Module]) -> Iterator[None]:
    def note(module: nn.Module, *_: Any) -> None:
        if isinstance(module, kind):
            seen.append(module)

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()


def test_padding_changes_nothing(family: Any) -> None:
    task, model = family
    rows = rows_of(task)
    together, count = task.loss(model, task.collate(rows))
    alone = [task.loss(model, task.collate([row])) for row in rows]
    torch.testing.assert_close(together, sum(total for total, _ in alone), rtol=1e-12, atol=1e-12)
    assert count == sum(each for _, each in alone)


def test_a_batch_is_padded_on_the_right(word_task: SequenceToSequence) -> None:
    batch = word_task.collate(rows_of(word_task, PAIRS[:2]))
    assert batch["input_ids"].tolist() == [[3, 4, 11, 1], [15, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[19, 20, 27, 1], [31, 1, IGNORED, IGNORED]]


def test_the_gradient_is_transformers_own(word_task: SequenceToSequence, tmp_path: Path) -> None:
    model, _ = FAMILIES["bart"][0](tmp_path)
    model.double()
    batch = word_task.collate(rows_of(word_task))
    total, count = word_task.loss(model, batch)
    (total / count).backward()
    ours = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    model(**batch).loss.backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, rtol=0, atol=1e-12, msg=name)


# Evaluation.


def test_accuracy_counts_target_tokens(family: Any) -> None:
    task, model = family
    batch = task.collate(rows_of(task))
    with torch.no_grad():
        hits, count = task.metrics(model, batch).sums["accuracy"]
        best = model(**batch).logits.argmax(-1)
    assert hits == ((best == batch["labels"]) & (batch["labels"] != IGNORED)).sum()
    assert count == (batch["labels"] != IGNORED).sum()


def test_the_metrics_of_texts_are_the_libraries(word_task: SequenceToSequence) -> None:
    records = [("the cat sat on a mat", "the cat sat on the mat"), ("no", "no"), ("", "two words")]
    said, wanted = ([each[side] for each in records] for side in (0, 1))
    scores = word_task.score(records)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["bleu"] == BLEU().corpus_score(said, [wanted]).score
    assert scores["chrf"] == CHRF().corpus_score(said, [wanted]).score
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(target, prediction)["rougeL"].fmeasure for prediction, target in records]
    assert scores["rougeL"] == pytest.approx(sum(rouge) / 3)
    assert set(scores) == {"exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_generated_texts_stand_beside_their_targets(family: Any) -> None:
    """What is generated is what Transformers generates greedily, and starts in the target's language."""
    task, model = family
    rows = rows_of(task)
    with torch.no_grad():
        records = task.metrics(model, task.collate(rows)).records
    assert [wanted for _, wanted in records] == [pair.target for pair in PAIRS]
    settings = language_settings(model, task.processor)
    ends = {"eos_token_id": task.processor.eos_token_id, "max_length": 10, "do_sample": False}
    for row, (said, _) in zip(rows, records, strict=True):
        ids = torch.as_tensor(row["input_ids"]).long().unsqueeze(0)
        expected = model.generate(input_ids=ids, **ends, **settings)
        assert said == task.processor.decode(expected[0].tolist(), skip_special_tokens=True).strip()


def test_generation_begins_as_training_did(family: Any) -> None:
    """The first two tokens that the decoder has are those of a training row, where that says the language."""
    task, model = family
    if not (settings := language_settings(model, task.processor)):
        return
    (row,) = rows_of(task, [Pair("one", "eins")])
    labels = torch.as_tensor(row["labels"]).long().unsqueeze(0)
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    decoder = torch.tensor([[2, *row["labels"][:-1]]]) if shift is None else shift(labels)
    ids = torch.as_tensor(row["input_ids"]).long().unsqueeze(0)
    written = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, **settings)
    known = 2 if "forced_bos_token_id" in settings else 1
    assert written[0, :known].tolist() == decoder[0, :known].tolist()
    (code,) = settings.values()
    assert code in labels


def test_without_their_libraries_the_other_metrics_remain(
    word_task: SequenceToSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftcli.tasks.measures.importlib.util.find_spec", lambda name: None)
    assert word_task.score([("a", "a"), ("a", "b")]) == {"exact_match": 0.5}
    assert word_task.remarks() == []
    generating = SequenceToSequence(recipe_of(training={"predict_with_generate": True}), word_task.processor)
    rouge, bleu = generating.remarks()
    assert "rouge will not be computed: rouge-score is not installed" in rouge
    assert "bleu and chrf will not be computed: sacrebleu is not installed" in bleu


# Rows.


def ready(folder: Path, rows: list[dict[str, Any]], tokenizer: Any = None, **sections: Any) -> Prepared:
    """The rows as training would have them, the half of which only evaluates."""
    data = {"train": {"path": str(write_jsonl(folder / "rows.jsonl", rows))}, **sections.pop("data", {})}
    recipe = recipe_of(data=data, **sections)
    task = SequenceToSequence(recipe, tokenizer or word_tokenizer(folder), BartConfig())
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=task.max_input())


def rows_in(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"source": source, "target": target} for source, target in pairs]


def test_the_prefix_stands_before_every_source(tmp_path: Path) -> None:
    prepared = ready(tmp_path, rows_in(("one", "eins")), data={"source_prefix": "red blue "})
    assert prepared.train[0]["input_ids"].tolist() == [11, 12, 3, 1]
    assert prepared.train[0]["labels"].tolist() == [19, 1]


def test_a_target_ends_even_where_the_tokenizer_ends_no_text(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = None
    prepared = ready(tmp_path, rows_in(("one", "eins")), tokenizer)
    assert prepared.train[0]["input_ids"].tolist() == [3]
    assert prepared.train[0]["labels"].tolist() == [19, 1]


def test_an_empty_target_is_learnt(tmp_path: Path) -> None:
    assert ready(tmp_path, rows_in(("one", ""))).train[0]["labels"].tolist() == [1]


LONG = rows_in(
    ("one two three", "eins zwei drei"), ("one", "eins zwei drei vier fünf"), ("one two three four", "eins")
)
LIMITS = {"data": {"max_length": 4}, "task": {"max_target_length": 4}}


def test_either_side_that_is_too_long_is_refused_and_its_limit_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ready(tmp_path, LONG, **LIMITS)
    text = str(caught.value)
    assert "row 2: 6 target tokens are more than max_target_length 4; raise task.max_target_length" in text
    assert "row 3: 5 tokens are more than max_length 4; raise data.max_length" in text
    assert "set data.overflow to truncate" in text


def test_either_side_is_cut_as_tokenizers_cut_it(tmp_path: Path) -> None:
    limits = {**LIMITS, "data": {"max_length": 4, "overflow": "truncate"}}
    prepared = ready(tmp_path, LONG, **limits)
    assert [row["input_ids"].tolist() for row in prepared.train] == [[3, 4, 5, 1], [3, 1], [3, 4, 5, 1]]
    assert [row["labels"].tolist() for row in prepared.train] == [[19, 20, 21, 1], [19, 20, 21, 1], [19, 1]]
    cut = [line for line in prepared.report.lines() if " rows cut " in line]
    assert len(cut) == 1
    assert "2 of 3 rows cut at max_target_length and max_length" in cut[0]


def test_rows_of_which_either_side_is_too_long_are_dropped(tmp_path: Path) -> None:
    limits = {**LIMITS, "data": {"max_length": 4, "overflow": "drop"}}
    prepared = ready(tmp_path, LONG, **limits)
    assert len(prepared.train) == 1
    assert any("2 of 3 rows dropped" in line for line in prepared.report.lines())


def test_languages_stay_where_a_row_is_cut(tmp_path: Path) -> None:
    tokenizer = mbart50_tokenizer(tmp_path)
    pairs = rows_in(("one two three four five", "eins zwei drei vier fünf"))
    prepared = ready(
        tmp_path,
        pairs,
        tokenizer,
        data={"max_length": 4, "overflow": "truncate"},
        task={"max_target_length": 3, "source_lang": "en_XX", "target_lang": "de_DE"},
    )
    (row,) = prepared.train
    assert tokenizer.convert_ids_to_tokens(row["input_ids"].tolist()) == ["en_XX", "▁one", "▁two", "</s>"]
    assert tokenizer.convert_ids_to_tokens(row["labels"].tolist()) == ["de_DE", "▁eins", "</s>"]
    assert "note      languages: en_XX to de_DE" in prepared.report.lines()


def test_the_report_tells_the_lengths_of_both_sides(tmp_path: Path) -> None:
    prepared = ready(tmp_path, LONG)
    part = prepared.report.train
    assert (part.rows, part.tokens, part.trained_tokens) == (3, 4 + 2 + 5 + 4 + 6 + 2, 12)
    assert part.line().endswith(
        "; length min 2, median 4, p95 5, max 5; target length min 2, median 4, p95 6, max 6"
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"source": "one"}, "no column 'target'"),
        ({"source": None, "target": "eins"}, "source must be text, not null"),
        ({"source": "one", "target": 1}, "target must be text, not int"),
        ({"source": " ", "target": "eins"}, "source is empty"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match="row 2: ") as caught:
        ready(tmp_path, [*rows_in(("one", "eins")), row])
    assert says in str(caught.value)


# What does not go together.


def test_a_language_that_the_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    tokenizer = mbart50_tokenizer(tmp_path)
    with pytest.raises(
        RecipeError, match=r"task.target_lang: the tokenizer knows no 'de'; choose one of: af_ZA,"
    ):
        SequenceToSequence(recipe_of(task={"target_lang": "de"}), tokenizer)
    with pytest.raises(RecipeError, match=r"task.target_lang: a MBart50Tokenizer writes a code"):
        SequenceToSequence(recipe_of(), tokenizer)
    with pytest.raises(
        RecipeError, match=r"task.source_lang: .* writes no languages; say it in data.source_prefix"
    ):
        SequenceToSequence(recipe_of(task={"source_lang": "en_XX"}), word_tokenizer(tmp_path))


def test_a_base_that_does_not_know_the_tokenizer_s_tokens_is_refused() -> None:
    task = SequenceToSequence(recipe_of(), ending_tokenizer())
    task.encode([Pair("a", "b")])
    task.check_model(tiny_mt5())
    with pytest.raises(ModelError, match="token 258 in a source, and the base knows 256"):
        task.check_model(tiny_mt5(256))


def test_a_decoder_that_does_not_know_how_to_start_is_refused() -> None:
    model = tiny_mt5()
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="does not say what its decoder starts with"):
        SequenceToSequence(recipe_of(), ending_tokenizer()).check_model(model)
