"""IMAGE_CLS: what a picture shows: one label, several, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from peftcli.data.example import Example, Pictured, Row
from peftcli.data.pictures import look_at
from peftcli.models.load import Base
from peftcli.tasks.base import Batch, Say
from peftcli.tasks.classification import Classification
from peftcli.tasks.vision import OfPictures, as_inputs, load_image_processor


class ImageClassification(OfPictures, Classification):
    """The task of labelling pictures."""

    task_type: ClassVar[str] = "IMAGE_CLS"
    pipeline_tag: ClassVar[str | None] = "image-classification"

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForImageClassification`."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    @staticmethod
    def load_processor(base: Base, *, trust_remote_code: bool = False, say: Say) -> Any:
        """The base's image processor."""
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MODELS

        del say
        return load_image_processor(
            base,
            MODELS,
            "IMAGE_CLS",
            "google/vit-base-patch16-224-in21k",
            trust_remote_code=trust_remote_code,
        )

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `image`, not read yet, and `label`."""
        shown = [example for example in examples if isinstance(example, Pictured)]
        rows: list[Row] = [{"image": each.image} for each in shown]
        looks = look_at([each.image for each in shown])
        for row, example in zip(rows, shown, strict=True):
            if example.label is not None:
                row["label"] = self.numbered(example.label)
        for look in looks:
            self._pictures.note(look)
        return [[row] for row in rows]

    def notes(self) -> list[str]:
        """The kind of problem, the labels, and what is done to pictures."""
        return [*super().notes(), *self._pictures.notes()]

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the processor makes, `pixel_values` (B, C, H, W) mostly, and `labels`."""
        return {**self._pictures.inputs([row["image"] for row in rows]), **self.collated_labels(rows)}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C)."""
        found: Tensor = model(**as_inputs(model, batch, beside=("labels",))).logits
        return found
