"""What a task is: from examples to rows, from rows to batches, from a model's outputs to a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from peftcli.data.example import Example, Row
from peftcli.recipe.schema import Recipe

Batch = Mapping[str, Tensor]
Sum = tuple[Tensor, Tensor]
"""A sum and its weight (a count), both scalars on the device: the caller adds many up and divides once."""


class Task(Protocol):
    """One `task_type`: everything about training that depends on what the model is for."""

    task_type: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    """The data formats that the task takes."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None: ...

    @staticmethod
    def auto_class() -> Any:
        """The Transformers AutoModel class that loads the base."""

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """The rows of each example.

        Raises:
            DataError: where an example cannot be encoded (of a batch, any one).
        """

    def remarks(self) -> list[str]:
        """What the user should know about the rows encoded so far, a line each."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that cannot do what the recipe's data settings ask.

        Raises:
            ModelError: naming the setting.
        """

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """A batch of the rows, padded on the right."""

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the losses of the batch's trained tokens (or rows), and their number. No host sync."""

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, Sum]:
        """For each metric its sum over the batch and its weight; `loss` is one, from the same forward."""
