"""SEQ_CLS: what a text, or a pair of texts, is: one label, several, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from peftcli.data.example import Example, Labelled, Row
from peftcli.errors import DataError
from peftcli.recipe.schema import Recipe
from peftcli.tasks.base import Batch
from peftcli.tasks.classification import Classification
from peftcli.tasks.text_batch import (
    added_ids,
    check_vocabulary,
    cut_texts,
    encode_texts,
    largest_token,
    pad_texts,
    text_inputs,
)


class SequenceClassification(Classification):
    """The task of labelling texts."""

    task_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str | None] = "text-classification"

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        self._largest = -1

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForSequenceClassification`."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_options(self) -> dict[str, Any]:
        """The labels, and the padding that decoders look for to find a row's last token."""
        return {**super().model_options(), "pad_token_id": self.processor.pad_token_id}

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example; `label` is (1,), (labels of the row,) or a float."""
        texts = [example for example in examples if isinstance(example, Labelled)]
        rows = self._tokens(texts)
        self._largest = max(self._largest, largest_token(rows))
        for row, example in zip(rows, texts, strict=True):
            if not len(row["input_ids"]):
                raise DataError("text is empty: it has no token")
            if example.label is not None:
                row["label"] = self.numbered(example.label)
        return [[row] for row in rows]

    def _tokens(self, examples: Sequence[Labelled]) -> list[Row]:
        """Encoded with and without a second text apart: a tokenizer takes lists of one kind."""
        rows: list[Row] = [{} for _ in examples]
        for paired in (False, True):
            chosen = [at for at, each in enumerate(examples) if (each.text_pair is not None) == paired]
            pairs = [examples[at].text_pair or "" for at in chosen] if paired else None
            for at, row in zip(
                chosen, encode_texts(self.processor, [examples[at].text for at in chosen], pairs), strict=True
            ):
                rows[at] = row
        return rows

    def cut(self, row: Row, limit: int) -> Row:
        """Cut at the end of the longer text; special tokens stay."""
        return cut_texts(row, limit, added_ids(self.processor))

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Tokens (B, T), and `labels`."""
        return {**pad_texts(rows, self.processor.pad_token_id), **self.collated_labels(rows)}

    def check_model(self, model: nn.Module) -> None:
        """Refuses a vocabulary that is not the tokenizer's."""
        check_vocabulary(model, self._largest)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C)."""
        found: Tensor = model(**text_inputs(batch)).logits
        return found
