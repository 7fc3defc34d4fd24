"""Embeddings: the loss among a batch by hand, texts that are no negatives, pooling, and the field's metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModel, BartConfig, BertConfig

from peftcli.data.columns import load_format, select
from peftcli.data.example import Similar
from peftcli.data.prepare import Prepared, prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.tasks.feature_extraction import FeatureExtraction
from peftcli.tasks.ranking import Ranked, rank
from tests.bases import letter_tokenizer
from tests.data.writers import write_jsonl
from tests.tasks.animals import BASES, WORDS
from tests.tasks.animals import recipe_of as any_recipe

PAIRS = [
    Similar("the cat sits", "mammal", "hen"),
    Similar("owl", "my old bird"),
    Similar("my old cod eats", "fish", "the dog"),
]
SCORED = [Similar("cat", "the dog", None, 0.5), Similar("owl eats", "cod", None, -0.25)]


def recipe_of(**sections: Any) -> Any:
    return any_recipe(task_type="FEATURE_EXTRACTION", **sections)


def task_of(tokenizer: Any = None, config: Any = None, **sections: Any) -> FeatureExtraction:
    return FeatureExtraction(recipe_of(**sections), tokenizer or letter_tokenizer(WORDS), config)


def rows_of(task: FeatureExtraction, examples: list[Similar]) -> list[dict[str, Any]]:
    return [row for (row,) in task.encode(examples)]


def prepared(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    """The rows as training would have them."""
    data = {"train": {"path": str(write_jsonl(folder / "rows.jsonl", rows))}} | sections.pop("data", {})
    recipe = recipe_of(data=data, **sections)
    task = FeatureExtraction(recipe, letter_tokenizer(WORDS), BertConfig())
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=512)


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model, tokenizer)."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = BASES[request.param](folder)
    return AutoModel.from_pretrained(folder).double().eval(), tokenizer


def alone(task: FeatureExtraction, model: Any, text: str) -> Any:
    """A text's vector of length 1, without any other text beside it."""
    vector = np.asarray(task.predict(model, task.collate(rows_of(task, [Similar(text)])))[0]["embedding"])
    return vector / np.linalg.norm(vector)


# The loss.


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_loss_is_that_of_each_positive_among_all_candidates(pooling: str, base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer, task={"pooling": pooling, "temperature": 0.2})
    total, count = task.loss(model, task.collate(rows_of(task, PAIRS)))
    texts = [each.positive or "" for each in PAIRS] + [each.negative for each in PAIRS if each.negative]
    candidates = np.stack([alone(task, model, text) for text in texts])
    wanted = 0.0
    for at, each in enumerate(PAIRS):
        cosines = candidates @ alone(task, model, each.anchor) / 0.2
        wanted += math.log(np.exp(cosines).sum()) - cosines[at]
    assert count == 3
    assert total.item() == pytest.approx(wanted, rel=1e-9)


def test_the_loss_of_scores_is_the_squared_difference(base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer)
    total, count = task.loss(model, task.collate(rows_of(task, SCORED)))
    cosines = [alone(task, model, each.anchor) @ alone(task, model, each.positive or "") for each in SCORED]
    assert count == 2
    assert total.item() == pytest.approx((cosines[0] - 0.5) ** 2 + (cosines[1] + 0.25) ** 2, rel=1e-5)


def test_the_temperature_is_005_where_none_is_said(base: Any) -> None:
    model, tokenizer = base
    unsaid, said, other = (
        task_of(tokenizer, task=task) for task in ({}, {"temperature": 0.05}, {"temperature": 1})
    )
    losses = [task.loss(model, task.collate(rows_of(task, PAIRS)))[0] for task in (unsaid, said, other)]
    assert losses[0] == losses[1] != losses[2]


def rivals(*rows: Similar) -> list[list[int]]:
    task = task_of()
    found = task.collate(rows_of(task, list(rows)))["rivals"]
    return [[int(each) for each in row] for row in found]


def test_the_same_text_is_no_rival_of_itself() -> None:
    assert rivals(Similar("cat", "the dog"), Similar("owl", "cod")) == [[0, 1], [1, 0]]
    twice = rivals(Similar("cat", "the dog"), Similar("owl", "the dog"), Similar("ide", "cod", "the dog"))
    assert twice == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    both_ways = rivals(Similar("cat", "the dog"), Similar("the dog", "cat"))
    assert both_ways == [[0, 0], [0, 0]]
    one_anchor = rivals(Similar("cat", "dog"), Similar("cat", "cow"), Similar("owl", "hen"))
    assert one_anchor == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


def test_a_row_without_a_rival_is_not_counted(base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer)
    batch = task.collate(rows_of(task, [Similar("cat", "dog"), Similar("owl", "dog")]))
    total, count = task.loss(model, batch)
    assert (total.item(), count.item()) == (0.0, 0)


def test_a_batch_of_one_row_is_refused_unless_every_row_has_a_negative(tmp_path: Path) -> None:
    pair, triple = (
        {"anchor": "cat", "positive": "dog"},
        {"anchor": "cat", "positive": "dog", "negative": "owl"},
    )
    single = {"training": {"per_device_train_batch_size": 1}}
    with pytest.raises(RecipeError, match=r"per_device_train_batch_size: a batch of 1 row has no other text"):
        prepared(tmp_path, [triple, pair], **single)
    assert len(prepared(tmp_path, [triple, triple], **single).train) == 2  # type: ignore[arg-type]
    assert len(prepared(tmp_path, [pair | {"score": 1}], **single).train) == 1  # type: ignore[arg-type]


# Pooling.


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_vector_is_pooled_of_the_text_s_own_tokens(pooling: str, base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer, task={"pooling": pooling, "normalize": False})
    rows = rows_of(task, [Similar("the old cat sits"), Similar("cod")])
    found = [each["embedding"] for each in task.predict(model, task.collate(rows))]
    for row, vector in zip(rows, found, strict=True):
        hidden = model(input_ids=torch.as_tensor(row["input_ids"]).long()[None]).last_hidden_state[0]
        wanted = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        torch.testing.assert_close(torch.tensor(vector, dtype=torch.float64), wanted, rtol=1e-9, atol=1e-9)
    task.normalize = True
    lengths = [np.linalg.norm(each["embedding"]) for each in task.predict(model, task.collate(rows))]
    assert lengths == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        (None, "mean"),
    ],
)
def test_the_base_says_how_it_pools(tmp_path: Path, content: Any, pooling: str) -> None:
    BASES["encoder"](tmp_path)
    if content is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    assert task_of(config=config).pooling == pooling
    assert task_of(config=config, task={"pooling": "last"}).pooling == "last"
    assert f"pooling: {pooling}" in task_of(config=config).notes()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            '{"pooling_mode_max_tokens": true}',
            "pools by pooling_mode_max_tokens, which is not there; set task.pool",
        ),
        ('{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}', "set task.pooling"),
        ("{", "1_Pooling/config.json of .* cannot be read; say task.pooling"),
    ],
)
def test_another_pooling_is_refused_and_a_said_one_taken(tmp_path: Path, text: str, error: str) -> None:
    BASES["encoder"](tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text)
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises((RecipeError, ModelError), match=error):
        task_of(config=config)
    assert task_of(config=config, task={"pooling": "cls"}).pooling == "cls"


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"training.label_smoothing_factor: has no meaning"):
        task_of(training={"label_smoothing_factor": 0.1})
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        task_of(config=BartConfig())
    with pytest.raises(RecipeError, match=r"task.temperature: has no meaning for rows with a score"):
        rows_of(task_of(task={"temperature": 0.1}), SCORED)


# Rows.

CAT = {"anchor": "cat", "positive": "dog"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"anchor": "cat"}, "no column 'positive'"),
        (CAT | {"positive": " "}, "positive is empty"),
        (CAT | {"anchor": 3}, "anchor must be text, not int"),
        (CAT | {"negative": "dog"}, "negative is the same text as positive"),
        (CAT | {"score": 5}, "score must be a number from -1 to 1, as cosines are, not 5"),
        (CAT | {"score": "much"}, "score must be a number from -1 to 1"),
        (CAT | {"score": True}, "score must be a number from -1 to 1"),
        (CAT | {"score": float("nan")}, "score must be a number from -1 to 1"),
        (CAT | {"score": 1, "negative": "owl"}, "has a negative and a score"),
        (CAT | {"score": 1}, "has a score, and the rows before have none; write all rows alike"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: ") as caught:
        prepared(tmp_path, [CAT, row])
    assert says in str(caught.value)


def test_a_row_to_embed_has_a_text_or_an_anchor() -> None:
    found = load_format("similarity").without_targets()
    for row in ({"text": "cat"}, {"anchor": "cat"}, CAT, {"text": "cat", "score": "unread"}):
        assert found(select(found, None, row)) == Similar("cat")
    with pytest.raises(DataError, match="no column 'anchor'"):
        select(found, None, {"positive": "cat"})


def test_every_text_is_cut_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    rows = [{"anchor": "the old cat sits", "positive": "cat", "negative": "my old owl eats"}]
    found = prepared(tmp_path, rows, data={"max_length": 4, "overflow": "truncate"})
    (row,) = found.train
    tokenizer = letter_tokenizer(WORDS)
    texts = [tokenizer.decode(row[name]) for name in ("input_ids", "positive_ids", "negative_ids")]
    assert texts == ["[CLS] the old [SEP]", "[CLS] cat [SEP]", "[CLS] my old [SEP]"]
    with pytest.raises(DataError, match="row 1"):
        prepared(tmp_path, rows, data={"max_length": 5})


# Metrics.


def test_ranks_are_among_the_distinct_positives_of_all_rows() -> None:
    draw = np.random.default_rng(0)
    anchors, positives = (draw.normal(size=(30, 8)).astype(np.float32) for _ in range(2))
    anchors, positives = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (anchors, positives))
    names = [f"p{at % 20}".encode() for at in range(30)]
    positives = np.stack([positives[at % 20] for at in range(30)])
    found = rank([Ranked(f"a{at}".encode(), names[at], anchors[at], positives[at]) for at in range(30)])
    places = []
    for at in range(30):
        scores = positives[:20] @ anchors[at]
        places.append(1 + int((scores > scores[at % 20]).sum()))
    assert found["mrr"] == pytest.approx(np.mean([1 / place for place in places]))
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean([place <= k for place in places]))


def test_another_positive_of_the_same_anchor_is_no_wrong_answer() -> None:
    one, other = np.eye(2, dtype=np.float32)
    rows = [Ranked(b"a", b"p", one, one), Ranked(b"a", b"q", one, other)]
    assert rank(rows)["recall_at_1"] == 1
    assert rank([rows[0], Ranked(b"b", b"q", one, other)])["recall_at_1"] == 0.5


def test_scores_are_compared_by_scipy(base: Any) -> None:
    model, tokenizer = base
    task = task_of(tokenizer)
    rows = [
        Similar(text, "the cat", None, at / 4) for at, text in enumerate(("owl", "cod eats", "my hen", "ide"))
    ]
    with torch.no_grad():
        found = task.metrics(model, task.collate(rows_of(task, rows)))
    cosines = [alone(task, model, each.anchor) @ alone(task, model, "the cat") for each in rows]
    wanted = spearmanr(cosines, [0, 1, 2, 3]).statistic
    assert task.score(found.records) == {"spearman": pytest.approx(wanted)}
    assert math.isnan(task.score(found.records[:1])["spearman"])
