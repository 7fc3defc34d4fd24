"""FEATURE_EXTRACTION: texts as vectors, trained so that what belongs together lies together.

Rows of {anchor, positive, negative?} are trained by telling each positive from the other texts of its batch: InfoNCE
(van den Oord et al. 2018, arXiv:1807.03748) with the batch's other positives as negatives (Henderson et al. 2017,
arXiv:1705.00652). Rows with a `score` are trained by the squared difference of cosine and score (Reimers and Gurevych
2019, arXiv:1908.10084). Shapes: B rows, K negatives of all of them, T tokens, H width, C = B + K candidates.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftcli.data.example import Example, Limit, Row, Similar
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import FeatureExtractionOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.pooling import base_pooling, pooled
from peftcli.tasks.ranking import Ranked, rank
from peftcli.tasks.text_batch import (
    added_ids,
    check_vocabulary,
    cut_texts,
    encode_texts,
    pad_texts,
    text_inputs,
)

_FILE = "pooling.json"
_TEMPERATURE = 0.05


class FeatureExtraction(Task):
    """The task of embedding texts."""

    task_type: ClassVar[str] = "FEATURE_EXTRACTION"
    pipeline_tag: ClassVar[str | None] = "feature-extraction"

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, FeatureExtractionOptions)
        if recipe.training.label_smoothing_factor:
            raise RecipeError("training.label_smoothing_factor: has no meaning here; leave it out")
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                "the base is an encoder and a decoder; embeddings are taken from one of them alone"
            )
        self.pooling: str = options.pooling or base_pooling(config) or "mean"
        self.normalize = options.normalize
        self._temperature = options.temperature
        self.scored: bool | None = None
        self._without_negative = False
        self._largest = -1

    @staticmethod
    def auto_class() -> Any:
        """`AutoModel`: there is no head."""
        from transformers import AutoModel

        return AutoModel

    def model_options(self) -> dict[str, Any]:
        """No layer for BERT's own kind of pooling: many bases do not bring it, and nothing here would train it."""
        from transformers import MODEL_MAPPING

        if type(self.config) not in MODEL_MAPPING:
            return {}
        takes = inspect.signature(MODEL_MAPPING[type(self.config)].__init__).parameters
        return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}

    def base_options(self) -> dict[str, Any]:
        """The same."""
        return self.model_options()

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `input_ids` of the anchor, and beside them what the format has.

        These are `positive_ids` and `negative_ids` (empty where there is no negative), int32, and `score`, a float.
        """
        found = [example for example in examples if isinstance(example, Similar)]
        for example in found:
            self._check_kind(example)
        rows: list[Row] = [{"input_ids": ids} for ids in self._tokens([each.anchor for each in found])]
        paired = [at for at, each in enumerate(found) if each.positive is not None]
        positives = self._tokens([found[at].positive or "" for at in paired])
        for at, ids in zip(paired, positives, strict=True):
            rows[at]["positive_ids"] = ids
            rows[at]["negative_ids"] = np.zeros(0, dtype=np.int32)
            if found[at].score is not None:
                rows[at]["score"] = found[at].score
        opposed = [at for at, each in enumerate(found) if each.negative is not None]
        negatives = self._tokens([found[at].negative or "" for at in opposed])
        for at, ids in zip(opposed, negatives, strict=True):
            rows[at]["negative_ids"] = ids
        return [[row] for row in rows]

    def _tokens(self, texts: list[str]) -> list[Any]:
        found = [row["input_ids"] for row in encode_texts(self.processor, texts)]
        for ids in found:
            if not len(ids):
                raise DataError("a text is empty: it has no token")
            self._largest = max(self._largest, int(ids.max()))
        return found

    def _check_kind(self, example: Similar) -> None:
        """All rows have a score, or none.

        Raises:
            DataError: for a row that is not as those before.
        """
        if example.positive is None:
            return
        scored = example.score is not None
        if self.scored is None:
            self.scored = scored
            if scored and self._temperature is not None:
                raise RecipeError("task.temperature: has no meaning for rows with a score; leave it out")
        if scored != self.scored:
            has, had = ("a", "none") if scored else ("no", "one")
            raise DataError(f"has {has} score, and the rows before have {had}; write all rows alike")
        self._without_negative |= not scored and example.negative is None

    def settle(self) -> None:
        """Refuses batches in which there is nothing to tell a positive from.

        Raises:
            RecipeError: with the setting.
        """
        if self.recipe.training.per_device_train_batch_size > 1 or self.scored:
            return
        if self.scored is None or self._without_negative:
            raise RecipeError(
                "training.per_device_train_batch_size: a batch of 1 row has no other text to tell its positive from, "
                "and trains nothing; raise it (or give every row a negative, and do not stream)"
            )

    def notes(self) -> list[str]:
        """What is trained, and how texts are pooled."""
        pooling = f"pooling: {self.pooling}"
        if self.scored is None:
            return [pooling]
        if self.scored:
            return ["cosines are trained towards scores", pooling]
        rows = self.recipe.training.per_device_train_batch_size
        told = f"a positive is told from its batch's other positives and all negatives: {rows} rows, of one process"
        return [told, pooling]

    def remarks(self) -> list[str]:
        """Metrics that cannot be computed."""
        wanted = {"scipy": "spearman"} if self.scored else {"torchmetrics": "recall and mrr"}
        return missing_measures(wanted)

    def cut(self, row: Row, limit: int) -> Row:
        """The anchor cut at its end; special tokens stay."""
        return self._cut(row, "input_ids", limit)

    def limits(self) -> tuple[Limit, ...]:
        """Every text has that of `data.max_length`."""
        names = {"positive_ids": "positive", "negative_ids": "negative"}
        return tuple(
            Limit(column, name, self.limit, "data.max_length", partial(self._cut_column, column))
            for column, name in names.items()
        )

    def _cut_column(self, column: str, row: Row, limit: int) -> Row:
        return self._cut(row, column, limit)

    def _cut(self, row: Row, column: str, limit: int) -> Row:
        cut = cut_texts({"input_ids": row[column]}, limit, added_ids(self.processor))
        return {**row, column: cut["input_ids"]}

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """All texts in one batch: anchors, then positives, then negatives; one forward is enough for them.

        `input_ids` and `attention_mask` (texts, T); where there are positives `rivals` (B, C), which says which
        candidates a row's positive is told from, or `scores` (B,); and `texts`, bytes that tell texts apart.
        """
        anchors = [row["input_ids"] for row in rows]
        if "positive_ids" not in rows[0]:
            return dict(pad_texts(rows, self.processor.pad_token_id))
        positives = [row["positive_ids"] for row in rows]
        negatives = [row["negative_ids"] for row in rows if len(row["negative_ids"])]
        texts = [*anchors, *positives, *negatives]
        batch: dict[str, Any] = dict(
            pad_texts([{"input_ids": ids} for ids in texts], self.processor.pad_token_id)
        )
        if "score" in rows[0]:
            return batch | {"scores": torch.tensor([row["score"] for row in rows])}
        names = [ids.tobytes() for ids in texts]
        return batch | {"rivals": _rivals(names, len(rows)), "texts": names[: 2 * len(rows)]}

    def check_model(self, model: nn.Module) -> None:
        """Refuses a vocabulary that is not the tokenizer's."""
        check_vocabulary(model, self._largest)

    # Training, evaluation, prediction.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the rows' losses and their number; a row without a rival has none, and is not counted."""
        del label_smoothing
        return self._loss(self._embeddings(model, batch), batch)

    def _loss(self, vectors: Tensor, batch: Batch) -> Sum:
        """Of vectors (texts, H) of length 1."""
        if "scores" in batch:
            scores = batch["scores"]
            total = F.mse_loss(_cosines(vectors, len(scores)), scores.to(vectors), reduction="sum")
            return total, torch.full((), len(scores), device=vectors.device)
        rivals = batch["rivals"]
        rows = len(rivals)
        own = torch.arange(rows, device=vectors.device)
        candidates = rivals.clone()
        candidates[own, own] = True
        logits = vectors[:rows] @ vectors[rows:].T / (self._temperature or _TEMPERATURE)
        total = F.cross_entropy(logits.masked_fill(~candidates, -torch.inf), own, reduction="sum")
        return total, rivals.any(1).sum()

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss among the batch, and for each row its embeddings, or its cosine and score."""
        vectors = self._embeddings(model, batch)
        sums = {"loss": self._loss(vectors, batch)}
        if "scores" in batch:
            cosines = _cosines(vectors, len(batch["scores"]))
            return Evaluated(sums, list(zip(cosines.tolist(), batch["scores"].tolist(), strict=True)))
        rows = len(batch["rivals"])
        found = vectors[: 2 * rows].float().cpu().numpy()
        texts = batch["texts"]
        return Evaluated(
            sums,
            [Ranked(texts[at], texts[rows + at], found[at], found[rows + at]) for at in range(rows)],
        )

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """TorchMetrics' recall at 1, 5 and 10 and MRR among all rows' positives, or SciPy's Spearman correlation."""
        if not isinstance(records[0], Ranked):
            cosines, scores = (np.asarray(column) for column in zip(*records, strict=True))
            return {"spearman": _spearman(cosines, scores)} if has_measure("scipy") else {}
        return rank(records) if has_measure("torchmetrics") else {}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """`embedding`: H numbers."""
        found = self._pooled(model, batch)
        vectors = F.normalize(found, dim=-1) if self.normalize else found
        return [{"embedding": vector} for vector in vectors.tolist()]

    def _embeddings(self, model: nn.Module, batch: Batch) -> Tensor:
        """(texts, H), of length 1."""
        return F.normalize(self._pooled(model, batch), dim=-1)

    def _pooled(self, model: nn.Module, batch: Batch) -> Tensor:
        hidden = model(**text_inputs(batch)).last_hidden_state
        return pooled(hidden, batch["attention_mask"], self.pooling)

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The tokenizer, and pooling.json."""
        super().save(folder)
        content = {"pooling": self.pooling, "normalize": self.normalize}
        (folder / _FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """How texts are pooled."""
        try:
            saved = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            pooling, normalize = saved["pooling"], saved["normalize"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"has no {_FILE} that can be read, which says how texts are pooled; copy it from where it was trained",
                where=str(folder),
            ) from error
        if pooling not in {"mean", "cls", "last"} or not isinstance(normalize, bool):
            raise ModelError("says no pooling that is known: mean, cls or last", where=str(folder / _FILE))
        self.pooling, self.normalize = pooling, normalize


def _cosines(vectors: Tensor, rows: int) -> Tensor:
    """(B,), of vectors (2 B, H) of length 1."""
    return (vectors[:rows] * vectors[rows:]).sum(-1)


def _rivals(texts: Sequence[bytes], rows: int) -> Tensor:
    """Which candidates are wrong for a row: (B, C), of B anchors, B positives and K negatives.

    The same text as the row's positive or anchor is no wrong answer, nor is another positive of the same anchor.
    """
    anchors, candidates = texts[:rows], texts[rows:]
    right: dict[bytes, set[bytes]] = {}
    for anchor, positive in zip(anchors, candidates, strict=False):
        right.setdefault(anchor, {anchor}).add(positive)
    return torch.tensor([[text not in right[anchor] for text in candidates] for anchor in anchors])


def _spearman(cosines: Any, scores: Any) -> float:
    """NaN where either never changes: a correlation is not defined there."""
    if len(scores) < 2 or np.ptp(cosines) == 0 or np.ptp(scores) == 0:
        return float("nan")
    return float(measure("scipy.stats").spearmanr(cosines, scores).statistic)
