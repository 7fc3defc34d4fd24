"""SEMANTIC_SEG: which class each pixel of a picture is of.

The loss is the base's own, at the size of what its image processor makes, where masks are resized by their nearest
pixels. Metrics and predicted masks have the size of the picture. Shapes: B rows, C classes, H rows of W pixels.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peftcli.data.example import Example, Row, Segmented
from peftcli.data.pictures import Picture, at_once, look_at
from peftcli.errors import DataError, RecipeError
from peftcli.models.load import Base
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import SemanticSegmentationOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Say, Sum
from peftcli.tasks.labels import Labels
from peftcli.tasks.masks import NO_CLASS, likeliest, nearest, png
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.vision import OfPictures, as_inputs, load_image_processor, see_whole

_BESIDE = ("labels", "masks", "sizes")


class SemanticSegmentation(OfPictures):
    """The task of giving each pixel a class."""

    task_type: ClassVar[str] = "SEMANTIC_SEG"
    pipeline_tag: ClassVar[str | None] = "image-segmentation"
    answer_files: ClassVar[tuple[str, ...]] = ("mask",)

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, SemanticSegmentationOptions)
        if recipe.training.label_smoothing_factor:
            raise RecipeError(
                "training.label_smoothing_factor: the loss of SEMANTIC_SEG is the base's own, which smooths nothing; "
                "leave it out"
            )
        self._of_base = options.labels is None and _segments(config)
        names = _names(config) if self._of_base else options.labels
        self.labels = Labels(names)
        self._reduces = options.reduce_labels
        self._changed = see_whole(processor, reduces=options.reduce_labels)
        self._shown: set[int] = set()
        # What the base's own loss passes over.
        self._ignored: int = getattr(
            config, "semantic_loss_ignore_index", getattr(config, "loss_ignore_index", NO_CLASS)
        )

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForSemanticSegmentation`."""
        from transformers import AutoModelForSemanticSegmentation

        return AutoModelForSemanticSegmentation

    @staticmethod
    def load_processor(base: Base, *, trust_remote_code: bool = False, say: Say) -> Any:
        """The base's image processor."""
        from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING as MODELS

        del say
        return load_image_processor(
            base, MODELS, "SEMANTIC_SEG", "nvidia/mit-b0", trust_remote_code=trust_remote_code
        )

    def model_options(self) -> dict[str, Any]:
        """The classes."""
        return {"head": True, **self.labels.options()}

    def base_options(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_labels": len(self.labels.names)}

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `image` and `mask`, not read yet, and the image's `size` (H, W)."""
        drawn = [example for example in examples if isinstance(example, Segmented)]
        looks = look_at([each.image for each in drawn])
        rows: list[Row] = [
            {"image": each.image, "size": look.size} for each, look in zip(drawn, looks, strict=True)
        ]
        masks = [each.mask for each in drawn if each.mask is not None]
        found = iter(at_once(self._classes, masks))
        for row, example in zip(rows, drawn, strict=True):
            if example.mask is not None:
                row["mask"] = example.mask
                self._note(example.mask, row["size"], *next(found))
        for look in looks:
            self._pictures.note(look)
        return [[row] for row in rows]

    def _classes(self, mask: Picture) -> tuple[tuple[int, int], list[int]]:
        """A mask's size, and the classes that it shows."""
        numbers = self._numbers(mask)
        shown = np.flatnonzero(np.bincount(numbers.ravel())).tolist()
        return (numbers.shape[0], numbers.shape[1]), [number for number in shown if number != NO_CLASS]

    def _numbers(self, mask: Picture) -> NDArray[Any]:
        """(H, W), a class or NO_CLASS each."""
        numbers = mask.numbers()
        if not self._reduces:
            return numbers
        return np.where((numbers == 0) | (numbers == NO_CLASS), NO_CLASS, numbers - 1)

    def _note(self, mask: Picture, wanted: tuple[int, int], size: tuple[int, int], shown: list[int]) -> None:
        """Takes up what a mask shows.

        Raises:
            DataError: it is no mask of its picture, or shows classes that there are not.
        """
        if size != wanted:
            raise DataError(
                f"mask: {mask.name} has {size[1]} x {size[0]} pixels, and its image {wanted[1]} x {wanted[0]}: they "
                "must lie on one another"
            )
        if not shown:
            raise DataError(f"mask: {mask.name} has no pixel with a class ({self._without()})")
        if self.labels.names and shown[-1] >= len(self.labels.names):
            whose = "the base's" if self._of_base else "those of task.labels, or of the training masks"
            raise DataError(
                f"mask: {mask.name} has pixels of class {shown[-1] + self._reduces}, and there are "
                f"{len(self.labels.names)} classes, {whose}; name them all in task.labels"
            )
        self._shown.update(shown)

    def _without(self) -> str:
        return f"0 and {NO_CLASS} are none" if self._reduces else f"{NO_CLASS} is none"

    def settle(self) -> None:
        """All masks of the training rows have been seen; of streamed ones the recipe or the base names the classes."""
        if self.labels.names:
            return
        if not self._shown:
            raise RecipeError("task.labels: name the classes; streamed rows are not known before training")
        if self._shown == {0}:
            raise DataError(
                f"every mask shows the same class only: there is nothing to tell apart ({self._without()})"
            )
        first = int(self._reduces)
        self.labels = Labels([str(number + first) for number in range(max(self._shown) + 1)])

    def notes(self) -> list[str]:
        """The classes, and what is done to pictures and masks."""
        names = self.labels.names
        whose = ", the base's (task.labels names others)" if self._of_base else ""
        listed = self.labels.listed().removeprefix(", ").replace("labels", "classes")
        found = [f"{listed}{whose}"]
        if 0 < len(self._shown) < len(names):
            found.append(f"{len(self._shown):,} of the {len(names):,} classes stand in masks")
        return [*found, *self._changed, *self._pictures.notes()]

    def remarks(self) -> list[str]:
        """Metrics that cannot be computed."""
        return missing_measures({"torchmetrics": "mean_iou and pixel_accuracy"})

    @property
    def counted(self) -> str:
        """Pixels."""
        return "pixels"

    def weight(self, length: float) -> float:
        """The pixels that the loss is a mean of."""
        return length * self._pictures.area()

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the processor makes, `pixel_values` (B, 3, H, W), and `labels` (B, H, W).

        On the host are `masks`, each of its picture's own size, and these `sizes`.
        """
        batch: dict[str, Any] = dict(self._pictures.inputs([row["image"] for row in rows]))
        batch["sizes"] = [row["size"] for row in rows]
        if "mask" not in rows[0]:
            return batch
        size = batch["pixel_values"].shape[-2:]
        masks = at_once(self._numbers, [row["mask"] for row in rows])
        labels = torch.as_tensor(np.stack([nearest(mask, size) for mask in masks]), dtype=torch.long)
        batch["labels"] = labels.masked_fill(labels == NO_CLASS, self._ignored)
        batch["masks"] = masks
        return batch

    # Training, evaluation, prediction.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the base's own losses of pixels with a class, and their number."""
        del label_smoothing
        return self._loss(self._said(model, batch), batch["labels"])

    def _said(self, model: nn.Module, batch: Batch) -> Any:
        labels = {"labels": batch["labels"]} if "labels" in batch else {}
        return model(**as_inputs(model, batch, beside=_BESIDE), **labels)

    def _loss(self, said: Any, labels: Tensor) -> Sum:
        count = (labels != self._ignored).sum()
        # The mean over no pixel is no number.
        mean = said.loss.float() if said.loss.dtype != torch.float64 else said.loss
        return torch.where(count > 0, mean, torch.zeros_like(mean)) * count, count

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss, and what Torchmetrics counts of the pixels, at their pictures' size."""
        said = self._said(model, batch)
        sums = {"loss": self._loss(said, batch["labels"])}
        if not has_measure("torchmetrics"):
            return Evaluated(sums)
        counts = self._measures()
        for logits, mask in zip(said.logits, batch["masks"], strict=True):
            found = likeliest(logits, mask.shape).cpu()
            for each in counts.values():
                each.update(found, torch.as_tensor(mask, dtype=torch.long))
        return Evaluated(sums, [counts])

    def _measures(self) -> dict[str, Any]:
        kinds = measure("torchmetrics.classification")
        settings = {"num_classes": len(self.labels.names), "ignore_index": NO_CLASS, "validate_args": False}
        return {
            "mean_iou": kinds.MulticlassJaccardIndex(average="macro", **settings),
            "pixel_accuracy": kinds.MulticlassAccuracy(average="micro", **settings),
        }

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """Torchmetrics' mean IoU, of the classes that masks or predictions show, and the share of right pixels.

        Both are of all rows' pixels together.
        """
        if not records:
            return {}
        whole, *others = copy.deepcopy(records[0]), *records[1:]
        for each in others:
            for name, counted in whole.items():
                counted.merge_state(each[name])
        return {name: float(counted.compute()) for name, counted in whole.items()}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """For each row its mask as a PNG, and the share of the pixels that each class has."""
        said = model(**as_inputs(model, batch, beside=_BESIDE))
        names, records = self.labels.names, []
        for logits, size in zip(said.logits, batch["sizes"], strict=True):
            found = likeliest(logits, size).cpu().numpy()
            shares = np.bincount(found.ravel(), minlength=len(names)) / found.size
            order = np.argsort(-shares, kind="stable")
            classes = {names[at]: float(shares[at]) for at in order.tolist() if shares[at]}
            records.append((png(found + self._reduces, len(names) + self._reduces), classes))
        return records

    def answer(self, rows: Sequence[Row], records: Sequence[Any], folder: Path | None) -> dict[str, Any]:
        """`mask`, a PNG of the classes' numbers in the picture's size, and `classes` with the shares of its pixels."""
        assert folder is not None
        (row,), ((content, classes),) = rows, records
        stem = re.sub(r"[^\w.-]+", "-", Path(row["image"].name).stem).strip(".-") or "mask"
        name, number = f"{stem}.png", 1
        while (folder / name).exists():
            number += 1
            name = f"{stem}-{number}.png"
        (folder / name).write_bytes(content)
        return {"mask": name, "classes": classes}

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The image processor, and labels.json."""
        super().save(folder)
        self.labels.save(folder)

    def restore(self, folder: Path) -> None:
        """The classes."""
        self.labels, _ = Labels.load(folder)
        self._of_base = False


def _segments(config: Any) -> bool:
    """Whether the base has learnt to segment: what else its labels name are no classes of pixels."""
    return any("ForSemanticSegmentation" in name for name in getattr(config, "architectures", None) or ())


def _names(config: Any) -> list[str]:
    """The base's classes, in order; a name that stands there twice gets its number."""
    names = [str(config.id2label[at]) for at in range(len(config.id2label))]
    return [f"{name} ({at})" if names.count(name) > 1 else name for at, name in enumerate(names)]
