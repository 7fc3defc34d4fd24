"""What the tasks share whose rows have labels: one label, several, or a number.

Which of the three is the recipe's `task.problem_type`, or what the training rows' labels are: a name or whole
number is one label, a list is several, a number with a point is a regression. Shapes: B rows, C labels.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftcli.data.example import Row
from peftcli.errors import DataError, RecipeError
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import ClassificationOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.labels import Labels
from peftcli.tasks.measures import has_measure, measure, missing_measures

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
_KINDS = {SINGLE: "one label", MULTI: "a list of labels", REGRESSION: "a number with a point"}


class Classification(Task):
    """A task whose rows have a `label`: (1,), (labels of the row,), or a float."""

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, ClassificationOptions)
        self.labels = Labels(options.labels)
        self.problem_type: str | None = None
        if options.problem_type is not None:
            self._decide(options.problem_type)

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says of a batch, (B, C)."""

    def _decide(self, problem_type: str) -> None:
        """From now on it is this kind of problem.

        Raises:
            RecipeError: for what has no meaning then.
        """
        self.problem_type = problem_type
        if problem_type != SINGLE and self.recipe.training.label_smoothing_factor:
            raise RecipeError(
                f"training.label_smoothing_factor: has no meaning for {problem_type}; leave it out"
            )
        if problem_type == REGRESSION and self.recipe.task.get("labels"):
            raise RecipeError(
                "task.labels: a regression has none (task.problem_type, or labels with a point)"
            )

    def model_options(self) -> dict[str, Any]:
        """The labels."""
        labels = Labels(["LABEL_0"]) if self.problem_type == REGRESSION else self.labels
        return {"head": True, "problem_type": self.problem_type, **labels.options()}

    def base_options(self) -> dict[str, Any]:
        """The number of labels."""
        return {"num_labels": 1 if self.problem_type == REGRESSION else len(self.labels.names)}

    # Rows.

    def numbered(self, label: Any) -> Any:
        """A row's label, for `collated_labels` to make final.

        Raises:
            DataError: it is of another kind than those before, or none of those that there are.
        """
        kind = MULTI if isinstance(label, list) else REGRESSION if isinstance(label, float) else SINGLE
        if self.problem_type is None:
            self._decide(kind)
        if self.problem_type == REGRESSION:
            return _number(label)
        if self.problem_type == MULTI and kind == SINGLE:
            label, kind = [label], MULTI
        if self.problem_type != kind:
            raise DataError(
                f"label is {label!r}, {_KINDS[kind]}, but this is a {self.problem_type} (task.problem_type, or the "
                "rows before); write all rows alike"
            )
        wanted = label if isinstance(label, list) else [label]
        if len(set(wanted)) < len(wanted):
            twice = next(each for each in wanted if wanted.count(each) > 1)
            raise DataError(f"label has {twice!r} twice; name the labels that hold, not a flag for each")
        return np.asarray([self.labels.number(each) for each in wanted], dtype=np.int32)

    def settle(self) -> None:
        """All labels of the training rows are known; those of streamed ones the recipe must name."""
        if self.problem_type != REGRESSION:
            self.labels.close()

    def notes(self) -> list[str]:
        """The kind of problem, and the labels."""
        return [str(self.problem_type).replace("_", " ") + self.labels.listed()]

    def remarks(self) -> list[str]:
        """Metrics that cannot be computed."""
        regression = self.problem_type == REGRESSION
        return missing_measures({"scipy": "pearson"} if regression else {"sklearn": "accuracy and f1"})

    def collated_labels(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`labels`: (B,) numbers, (B, C) flags, or (B,) floats; nothing where rows have none."""
        if "label" not in rows[0]:
            return {}
        if self.problem_type == REGRESSION:
            return {"labels": torch.tensor([row["label"] for row in rows])}
        if self.problem_type != MULTI:
            return {"labels": torch.as_tensor(self.labels.numbers([row["label"][0] for row in rows]))}
        flags = torch.zeros((len(rows), len(self.labels.names)))
        for at, row in enumerate(rows):
            flags[at, torch.as_tensor(self.labels.numbers(row["label"]))] = 1
        return {"labels": flags}

    # Training, evaluation, prediction.

    def _precise(self, model: nn.Module, batch: Batch) -> Tensor:
        """The logits in float32 or better."""
        logits = self.logits(model, batch)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the rows' losses, in float32 or better, and their number."""
        return self._loss(self._precise(model, batch), batch["labels"], label_smoothing)

    def _loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Sum:
        if self.problem_type == REGRESSION:
            total = F.mse_loss(logits.squeeze(-1), labels.to(logits), reduction="sum")
        elif self.problem_type == MULTI:
            losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
            total = losses.mean(-1).sum()
        else:
            total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
        return total, torch.full((), len(labels), device=labels.device)

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss, and (predicted, true) for each row."""
        logits = self._precise(model, batch)
        predicted = self._predicted(logits).tolist()
        pairs = list(zip(predicted, batch["labels"].tolist(), strict=True))
        return Evaluated({"loss": self._loss(logits, batch["labels"])}, pairs)

    def _predicted(self, logits: Tensor) -> Tensor:
        if self.problem_type == REGRESSION:
            return logits.squeeze(-1)
        return (logits > 0).long() if self.problem_type == MULTI else logits.argmax(-1)

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """Scikit-learn's accuracy, macro F1 and Matthews correlation, or SciPy's Pearson correlation.

        Where several labels may hold, a row is accurate if all of its labels are right, and `f1_micro` is of all
        (row, label) pairs.
        """
        predicted, true = (np.asarray(column) for column in zip(*records, strict=True))
        if self.problem_type == REGRESSION:
            return {"pearson": _pearson(predicted, true)} if has_measure("scipy") else {}
        if not has_measure("sklearn"):
            return {}
        metrics = measure("sklearn.metrics")
        scores = {"accuracy": metrics.accuracy_score(true, predicted)}
        averages = {"f1": "macro", "f1_micro": "micro"} if self.problem_type == MULTI else {"f1": "macro"}
        for name, average in averages.items():
            scores[name] = metrics.f1_score(true, predicted, average=average, zero_division=0)
        if self.problem_type == SINGLE:
            with warnings.catch_warnings():
                # Where all rows have one label, 0 is meant to be said; that the matrix is small need not be.
                warnings.simplefilter("ignore", UserWarning)
                scores["matthews_correlation"] = metrics.matthews_corrcoef(true, predicted)
        return scores

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """`label` and its `score`; several `labels` and all `scores`; or a number as `label`."""
        logits = self._precise(model, batch)
        if self.problem_type == REGRESSION:
            return [{"label": value} for value in logits.squeeze(-1).tolist()]
        names = self.labels.names
        if self.problem_type == MULTI:
            scores = [dict(zip(names, row, strict=True)) for row in logits.sigmoid().tolist()]
            return [
                {"labels": [name for name, score in row.items() if score > 0.5], "scores": row}
                for row in scores
            ]
        best = logits.softmax(-1).max(-1)
        return [
            {"label": names[at], "score": score}
            for at, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The processor, and labels.json."""
        super().save(folder)
        self.labels.save(folder, problem_type=self.problem_type)

    def restore(self, folder: Path) -> None:
        """The labels and the kind of problem."""
        self.labels, saved = Labels.load(folder)
        self.problem_type = saved.get("problem_type")


def _number(label: Any) -> float:
    try:
        value = float(label)
    except (TypeError, ValueError):
        raise DataError(
            f"label is {label!r}, and no number, but this is a regression (task.problem_type, or the rows before)"
        ) from None
    if not np.isfinite(value):
        raise DataError(f"label must be a finite number, not {label}")
    return value


def _pearson(predicted: Any, true: Any) -> float:
    """NaN where either never changes: a correlation is not defined there."""
    if len(true) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(measure("scipy.stats").pearsonr(predicted, true).statistic)
