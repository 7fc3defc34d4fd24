"""What a task is: from examples to rows, from rows to batches, from a model's outputs to a loss and a prediction.

A task is made twice in the life of an adapter. For training it is made from the recipe, and learns from the
training rows what it must know (labels, say), which `save` writes beside the adapter. For evaluation and prediction
it is made from the run's locked recipe, and `restore` reads that again. The loop, the commands and the data part
know no task by name: what is special about one stands in its file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from peftcli import registry
from peftcli.data.example import Encoder, Example, Limit, Row, Tally, cut_tokens
from peftcli.data.overflow import effective_limit, next_tokens
from peftcli.models.load import Base, Loaded, load_config, load_model, load_tokenizer
from peftcli.recipe.adapter import adapter_config
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import OPTIONS
from peftcli.tasks.heads import head_modules

Batch = Mapping[str, Any]
"""Tensors, the first dimension the row; anything else in it is for `metrics` and `predict`, and stays on the host."""
Sum = tuple[Tensor, Tensor]
"""A sum and its weight (a count), both scalars on the device: the caller adds many up and divides once."""
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What evaluating a batch gives.

    Attributes:
        sums: for each metric that is a mean its sum over the batch and its weight; `loss` is one.
        records: what the task's other metrics are computed from, all batches' and processes' together: plain
            Python or NumPy values.
    """

    sums: dict[str, Sum]
    records: list[Any] = field(default_factory=list)


class Task(ABC):
    """One `task_type`: everything about training that depends on what the model is for.

    Args:
        recipe: the run.
        processor: what `load_processor` gave: a tokenizer, or a processor of images or sound.
        config: the base's Transformers config.
    """

    task_type: ClassVar[str]
    pipeline_tag: ClassVar[str | None] = None
    """The Hub's name for what the model does, for the model card."""
    usage: ClassVar[str] = "peftcli predict --adapter . --input rows.jsonl --output predictions.jsonl"
    """The command that uses an adapter, for the model card."""
    library: ClassVar[str] = "peft"
    """The library that an adapter is read with, for the model card."""
    unmergeable: ClassVar[str] = ""
    """What to do instead, where `peftcli merge` writes no model of the task."""

    def __init__(self, recipe: Recipe, processor: Any, config: Any) -> None:
        self.recipe = recipe
        self.processor = processor
        self.config = config
        self.tally = Tally()

    @property
    def limit(self) -> int | None:
        """The most tokens a row may have; None where nothing limits them."""
        return effective_limit(self.recipe.data.max_length, self.max_input())

    # The model.

    @staticmethod
    @abstractmethod
    def auto_class() -> Any:
        """The Transformers AutoModel class that loads the base."""

    @staticmethod
    def load_config(base: Base, *, trust_remote_code: bool = False) -> Any:
        """What the base's config says of it; no weights are read."""
        return load_config(base, trust_remote_code=trust_remote_code)

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any:
        """A base as a config says it, its weights at random, for what must only be tried."""
        return cls.auto_class().from_config(config, **options)

    @staticmethod
    def load_processor(base: Base, *, trust_remote_code: bool = False, say: Say) -> Any:
        """What turns inputs into tensors, from the base or from the adapter's folder: a tokenizer."""
        return load_tokenizer(base, trust_remote_code=trust_remote_code, say=say)

    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` is told beside the recipe's settings, such as the number of labels."""
        return {}

    def base_options(self) -> dict[str, Any]:
        """Of these the least that a user of Transformers needs to put the adapter on its base, for the model card."""
        return {}

    def load_model(self, base: Base) -> Loaded:
        """The base, as this task needs it; new weights are drawn from PyTorch's global generator."""
        return load_model(
            base,
            self.auto_class(),
            dtype=self.recipe.dtype,
            attn_implementation=self.recipe.attn_implementation,
            quantization=self.recipe.quantization,
            trust_remote_code=self.recipe.trust_remote_code,
            **self.model_options(),
        )

    def heads(self, loaded: Loaded) -> list[str]:
        """The modules that are trained and saved whole: those whose weights the base does not bring."""
        return head_modules(loaded.model, loaded.new)

    def adapter_config(self) -> Any:
        """The method's config that the recipe's `adapter` section describes."""
        return adapter_config(self.recipe)

    def check_model(self, model: nn.Module) -> None:  # noqa: B027  (most tasks have nothing to refuse)
        """Refuse a model that cannot do what the recipe's data settings ask.

        Raises:
            ModelError: naming the setting.
        """

    @contextmanager
    def readied(self, model: nn.Module, like: nn.Module | None = None) -> Iterator[None]:
        """The model made ready for the task's batches, and put back at the end; what is collated in between fits it.

        Args:
            model: with its adapter.
            like: a base of its kind to try things on, where the model has shapes only and no numbers.
        """
        del model, like
        yield

    # Rows.

    def max_input(self) -> int | None:
        """How many tokens the model takes, as far as its config or tokenizer says; None where neither does."""
        limits = [
            limit
            for limit in (
                getattr(self.config.get_text_config(), "max_position_embeddings", None),
                getattr(self.processor, "model_max_length", None),
            )
            # Tokenizers without a limit say 1e30.
            if isinstance(limit, int) and 0 < limit < 10**9
        ]
        return min(limits, default=None)

    def encoder(self) -> Encoder:
        """The task's part in preparing rows."""
        formats = OPTIONS[self.task_type].FORMATS
        trained = self.trained_tokens if self.counts_tokens else None
        return Encoder(
            encode=self.encode,
            formats=formats,
            settle=self.settle,
            notes=self.notes,
            remarks=self.remarks,
            trained=trained,
            cut=self.cut,
            limits=self.limits(),
            identity=self.identity,
            tally=self.tally,
        )

    def identity(self) -> str:
        """A text that differs where `encode` does, so that rows can be kept; empty where rows are encoded each time.

        A task that gives one learns nothing of rows but what its `tally` counts.
        """
        return ""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """The rows of each example.

        Raises:
            DataError: where an example cannot be encoded (of a batch, any one).
        """

    def settle(self) -> None:  # noqa: B027  (most tasks learn nothing from rows)
        """All training rows have been encoded; of streamed ones none yet."""

    def notes(self) -> list[str]:
        """What was found in the rows, such as their labels, a line each."""
        return []

    def remarks(self) -> list[str]:
        """What the user should be warned of, now that rows are encoded, a line each."""
        return []

    counts_tokens: ClassVar[bool] = False
    """Whether it trains tokens of a row, which `trained_tokens` counts, or the row."""

    @property
    def counted(self) -> str:
        """What the losses are a mean of, for a person."""
        return "tokens" if self.counts_tokens else "rows"

    def weight(self, length: float) -> float:
        """Roughly what a row of this length counts in the mean of the losses: its tokens, or one."""
        return length

    def trained_tokens(self, row: Row) -> int:
        """How many tokens of a row are trained, where the task counts them."""
        return next_tokens(row)

    def cut(self, row: Row, limit: int) -> Row:
        """A row cut to a number of tokens."""
        return cut_tokens(row, limit)

    def limits(self) -> tuple[Limit, ...]:
        """The limits of further columns of tokens, beside `limit`, which is that of `input_ids`."""
        return ()

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A batch of the rows, padded on the right."""

    # Training, evaluation, prediction.

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the losses of the batch's trained tokens (or rows), and their number. No host sync."""

    @abstractmethod
    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """What an evaluation needs of the batch: `loss` without label smoothing, and the rest from the same forward."""

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """The metrics that are no means, of all rows' records together."""
        del records
        return {}

    @classmethod
    def predicts(cls) -> bool:
        """Whether `peftcli predict` is the command that uses it; another task generates."""
        return cls.predict is not Task.predict

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """One record a row of the batch, for `answer`."""
        raise NotImplementedError

    answer_files: ClassVar[tuple[str, ...]] = ()
    """Keys of an answer that name files, which it writes into a folder."""

    def answer(self, rows: Sequence[Row], records: Sequence[Any], folder: Path | None) -> dict[str, Any]:
        """What is predicted for one example, as JSON; its rows' records together.

        Args:
            rows: the example's.
            records: one a row.
            folder: where files may be written that the answer names, by their names there, in `answer_files`; None
                where it names none.
        """
        del rows, folder
        record: dict[str, Any] = records[0]
        return record

    @classmethod
    def generates(cls, config: Any) -> bool:
        """Whether `peftcli generate` is the command that uses it: it writes text after or of a text.

        Args:
            config: the base's Transformers config.
        """
        del config
        return False

    @classmethod
    def generation_settings(
        cls, model: nn.Module, tokenizer: Any, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Makes a tokenizer ready for prompts, and gives what the base's GenerationConfig must say beside its own.

        Args:
            model: the base, with an adapter or without.
            tokenizer: as `load_processor` gave it.
            options: the recipe's `task`, empty where there is no recipe.
        """
        del model, tokenizer, options
        return {}

    def draw(self, model: nn.Module, prompt: str, *, seed: int, **settings: Any) -> Any:
        """A picture of what a prompt says, by a task whose options say that it draws."""
        raise NotImplementedError

    def python_usage(self, base_id: str) -> str:
        """The Python that puts the adapter in its folder on its base, for the model card."""
        kind = self.auto_class().__name__
        options = "".join(f", {name}={value!r}" for name, value in self.base_options().items())
        return (
            "from peft import PeftModel\n"
            f"from transformers import {kind}\n\n"
            f"base = {kind}.from_pretrained({base_id!r}{options})\n"
            'model = PeftModel.from_pretrained(base, ".")'
        )

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """Writes what inference needs beside the base and the adapter."""
        self.processor.save_pretrained(str(folder))

    def restore(self, folder: Path) -> None:  # noqa: B027  (most tasks save nothing but their processor)
        """Takes up again what `save` wrote beside the processor.

        Raises:
            ModelError: a file is missing or broken.
        """


def task_named(task_type: str) -> type[Task]:
    """The task of this name.

    Raises:
        RecipeError: there is none.
    """
    found: type[Task] = registry.resolve(registry.TASKS, task_type, what="task_type")
    return found
