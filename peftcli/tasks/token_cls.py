"""TOKEN_CLS: what each word of a text is: a part of an entity, a part of speech.

A word's tag is trained on its first piece, unless the recipe says on all. Where tags mark entities (B-LOC, I-LOC, O),
whole entities are what is scored, and what is predicted beside the tags. A word that the model does not see, as it is
blank or was cut off, counts as O. Shapes: B rows, T pieces, C labels; each row has its own number of words, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peftcli.data.example import Example, Row, Tagged
from peftcli.data.tokens import IGNORED, require_offsets
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import TokenClassificationOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.entities import OUTSIDE, entities, inside, iobes, mark_entities
from peftcli.tasks.labels import Labels
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.text_batch import check_vocabulary, keep_tokens, largest_token, pad_texts, text_inputs
from peftcli.tasks.token_loss import summed_token_loss
from peftcli.tasks.words import NO_WORD, encode_words, first_pieces

_UNSEEN = -1


class TokenClassification(Task):
    """The task of tagging words."""

    task_type: ClassVar[str] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str | None] = "token-classification"
    counts_tokens: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, TokenClassificationOptions)
        require_offsets(processor)
        self.labels = Labels(options.labels)
        self._all_pieces = options.label_all_tokens
        self._largest = -1
        self._unseen_words = 0
        self._cut_words = 0

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForTokenClassification`."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def model_options(self) -> dict[str, Any]:
        """The labels."""
        return {"head": True, **self.labels.options()}

    def base_options(self) -> dict[str, Any]:
        """The number of labels."""
        return {"num_labels": len(self.labels.names)}

    @property
    def _marks_entities(self) -> bool:
        return mark_entities(self.labels.names)

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `words` (T,), each piece's word; `tags` (W,), or `text`, the words to be tagged."""
        texts = [example for example in examples if isinstance(example, Tagged)]
        rows = encode_words(self.processor, [text.tokens for text in texts])
        self._largest = max(self._largest, largest_token(rows))
        for row, text in zip(rows, texts, strict=True):
            if text.tags is None:
                row["text"] = text.tokens
            else:
                row["tags"] = np.asarray([self.labels.number(tag) for tag in text.tags], dtype=np.int32)
                self._unseen_words += len(text.tokens) - len(first_pieces(row["words"])[0])
        return [[row] for row in rows]

    def settle(self) -> None:
        """All tags of the training rows are known; those of streamed ones the recipe must name."""
        self.labels.close()

    def notes(self) -> list[str]:
        """The labels, and what they mark."""
        return [("tags of entities" if self._marks_entities else "plain tags") + self.labels.listed()]

    def remarks(self) -> list[str]:
        """Words that are not learnt, and what is scored where."""
        said = []
        if self._unseen_words:
            said.append(
                f"{self._unseen_words:,} words are blank, or dropped by the tokenizer: they count as O"
            )
        if self._cut_words:
            said.append(f"{self._cut_words:,} words stand behind data.max_length: they count as O")
        if self._marks_entities:
            return said + missing_measures({"seqeval": "precision, recall, f1 and accuracy"})
        said.append(
            "the tags have no B- and I-: precision, recall and f1 are of words, and no entities are predicted"
        )
        return said + missing_measures({"sklearn": "precision, recall, f1 and accuracy"})

    def trained_tokens(self, row: Row) -> int:
        """The pieces that have a label."""
        words = row["words"]
        return int(np.count_nonzero(words != NO_WORD)) if self._all_pieces else len(first_pieces(words)[0])

    def cut(self, row: Row, limit: int) -> Row:
        """The last pieces left out; special tokens stay."""
        words = row["words"]
        own = np.flatnonzero(words != NO_WORD)
        behind = len(words) - 1 - int(own.max(initial=-1))
        places = np.arange(len(words))
        kept = np.concatenate([places[: max(limit - behind, 0)], places[len(words) - behind :]])[:limit]
        cut = {**keep_tokens(row, kept), "words": words[kept]}
        self._cut_words += len(first_pieces(words)[0]) - len(first_pieces(cut["words"])[0])
        return cut

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Tokens and `labels` (B, T), -100 where none is trained; on the host `pieces` and `tags` of each row."""
        batch: dict[str, Any] = dict(pad_texts(rows, self.processor.pad_token_id))
        batch["pieces"] = [first_pieces(row["words"]) for row in rows]
        if "tags" not in rows[0]:
            return batch
        batch["tags"] = [self.labels.numbers(row["tags"]) for row in rows]
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for at, (row, tags, pieces) in enumerate(zip(rows, batch["tags"], batch["pieces"], strict=True)):
            batch["labels"][at, : len(row["words"])] = torch.as_tensor(
                self._targets(row["words"], tags, *pieces)
            )
        return batch

    def _targets(
        self, words: NDArray[Any], tags: NDArray[Any], numbers: NDArray[Any], places: NDArray[Any]
    ) -> NDArray[Any]:
        """The label of each piece, (T,)."""
        targets = np.full(len(words), IGNORED)
        if self._all_pieces:
            own = words != NO_WORD
            targets[own] = self._further()[tags[words[own]]]
        targets[places] = tags[numbers]
        return targets

    def _further(self) -> NDArray[Any]:
        """For each label that of a word's further pieces."""
        number = {name: at for at, name in enumerate(self.labels.names)}
        return np.asarray([number.get(inside(name), at) for name, at in number.items()])

    def check_model(self, model: nn.Module) -> None:
        """Refuses a vocabulary that is not the tokenizer's."""
        check_vocabulary(model, self._largest)

    # Training and evaluation.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the labelled pieces' losses, in float32 or better, and their number."""
        return _loss(_logits(model, batch), batch["labels"], label_smoothing)

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss, and for each row its words' tags: (predicted, true), each (W,)."""
        logits = _logits(model, batch)
        records = []
        best = logits.argmax(-1).cpu().numpy()
        for row, tags, (numbers, places) in zip(best, batch["tags"], batch["pieces"], strict=True):
            predicted = np.full(len(tags), _UNSEEN)
            predicted[numbers] = row[places]
            records.append((predicted, tags))
        return Evaluated({"loss": _loss(logits, batch["labels"])}, records)

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of entities, by seqeval, and the words' accuracy.

        An entity is right where its words and its kind are, as in CoNLL's evaluation. Plain tags are scored word by
        word, by scikit-learn, and averaged over the tags.
        """
        if not self._marks_entities:
            return self._score_words(records) if has_measure("sklearn") else {}
        if not has_measure("seqeval"):
            return {}
        metrics = measure("seqeval.metrics.sequence_labeling")
        names = [*map(iobes, self.labels.names), OUTSIDE]  # the last is that of _UNSEEN
        predicted, true = ([[names[at] for at in row] for row in side] for side in zip(*records, strict=True))
        found = metrics.precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
        scores = dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))
        return scores | {"accuracy": metrics.accuracy_score(true, predicted)}

    def _score_words(self, records: Sequence[Any]) -> dict[str, float]:
        metrics = measure("sklearn.metrics")
        predicted, true = (np.concatenate(side) for side in zip(*records, strict=True))
        there = np.setdiff1d(np.union1d(predicted, true), [_UNSEEN])
        found = metrics.precision_recall_fscore_support(
            true, predicted, labels=there, average="macro", zero_division=0
        )
        scores = dict(zip(("precision", "recall", "f1"), map(float, found[:3]), strict=True))
        return scores | {"accuracy": metrics.accuracy_score(true, predicted)}

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """For each row (words, labels, probabilities) of the words that have a piece."""
        likeliest = _logits(model, batch).float().softmax(-1).max(-1)
        scores, best = likeliest.values.cpu().numpy(), likeliest.indices.cpu().numpy()
        return [
            (numbers.tolist(), best[at, places].tolist(), scores[at, places].tolist())
            for at, (numbers, places) in enumerate(batch["pieces"])
        ]

    def answer(self, rows: Sequence[Row], records: Sequence[Any], folder: Path | None) -> dict[str, Any]:
        """`tags`, null for a word that the model did not see; `entities` as {label, start, end, text, score}.

        `start` and `end` number words, from 0, as Python's slices do; the score is the mean of the words' own.
        """
        del folder
        (row,), ((numbers, best, scores),) = rows, records
        tags: list[str | None] = [None] * len(row["text"])
        certain = dict(zip(numbers, scores, strict=True))
        for number, label in zip(numbers, best, strict=True):
            tags[number] = self.labels.names[label]
        if not self._marks_entities:
            return {"tags": tags}
        found = []
        for each in entities([tag or OUTSIDE for tag in tags]):
            words = range(each.start, each.end)
            found.append(
                {
                    "label": each.label,
                    "start": each.start,
                    "end": each.end,
                    "text": " ".join(row["text"][at] for at in words),
                    "score": sum(certain[at] for at in words) / len(words),
                }
            )
        return {"tags": tags, "entities": found}

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The tokenizer, and labels.json."""
        super().save(folder)
        self.labels.save(folder)

    def restore(self, folder: Path) -> None:
        """The labels."""
        self.labels, _ = Labels.load(folder)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, C); where a prompt stands before the tokens, it has logits, too."""
    logits: Tensor = model(**text_inputs(batch)).logits
    return logits[:, -batch["input_ids"].shape[1] :]


def _loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Sum:
    total = summed_token_loss(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)
    return total, (labels != IGNORED).sum()
