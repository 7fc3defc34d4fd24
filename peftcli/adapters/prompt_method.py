"""What a prompt method offers to the engine: how its virtual tokens are made, and where they go.

A prompt is a module (`prompt_encoder[NAME]` in PEFT's models) that gives N vectors of E numbers. They stand before the
embeddings of a model's input or, where `keys_and_values`, before the keys and values of each attention layer: then E is
layers · 2 · heads · dimensions of a head. Shapes: B rows, N virtual tokens, E numbers of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from peftcli.adapters.config import TaskType
from peftcli.adapters.prompt_config import WordedPromptConfig
from peftcli.errors import AdapterError

SAVED = "prompt_embeddings"


class PromptEncoder(nn.Module):
    """A prompt that is trained as it is: `embedding`, (N, E)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """The virtual tokens with these numbers, (…, E)."""
        vectors: torch.Tensor = self.embedding(indices)
        return vectors

    def prompt(self, rows: int, task_ids: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002  (for several tasks)
        """The whole prompt for each of B rows, (B, N, E)."""
        vectors: torch.Tensor = self(self.indices)
        return vectors.expand(rows, -1, -1)

    def saved(self) -> dict[str, torch.Tensor]:
        """The tensors that the adapter's file holds: the live ones, or what `take` takes back."""
        return {SAVED: self.embedding.weight}

    def take(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes over tensors of a file that are not the live ones."""

    def unsaved(self) -> dict[str, torch.Tensor]:
        """What going on with training needs beside the file."""
        return {}

    def restore(self, unsaved: Mapping[str, torch.Tensor]) -> None:
        """Takes that back."""
        if unsaved:
            self.load_state_dict(unsaved)

    def trained(self, trained: bool) -> None:
        """Trains the prompt, or stops training it."""
        self.requires_grad_(trained)

    @property
    def indices(self) -> torch.Tensor:
        """The numbers of all virtual tokens, (1, N)."""
        return torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device).unsqueeze(0)


class NetworkPromptEncoder(PromptEncoder):
    """A prompt that a network makes while it is trained. The file holds what the network makes, and not the network.

    A prompt from a file is therefore its own `embedding`, and is trained further as such.
    """

    # The network's modules, by attribute; `embedding` is what goes in.
    networks: ClassVar[tuple[str, ...]]

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__(tokens, width)
        # What a prompt from a file took the place of, and its optimizer still holds.
        self._aside: dict[str, nn.Module] = {}

    @property
    def is_direct(self) -> bool:
        """Whether the network is gone, or never was."""
        return not any(hasattr(self, name) for name in self.networks)

    def saved(self) -> dict[str, torch.Tensor]:
        """What the network makes, without its dropout."""
        if self.is_direct:
            return super().saved()
        was_training = self.training
        self.eval()
        with torch.no_grad():
            made = self(self.indices)[0]
        self.train(was_training)
        return {SAVED: made}

    def take(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Puts the network aside, for no input of it is known that makes this prompt."""
        if self.is_direct:
            return
        trained = self.embedding.weight.requires_grad
        self._aside = {
            name: getattr(self, name) for name in ("embedding", *self.networks) if hasattr(self, name)
        }
        for name in self._aside:
            delattr(self, name)
        prompt = saved[SAVED]
        tokens, width = prompt.shape
        self.embedding = nn.Embedding(tokens, width, _weight=prompt, _freeze=not trained)

    def unsaved(self) -> dict[str, torch.Tensor]:
        """The network and what goes in."""
        return {} if self.is_direct else {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def restore(self, unsaved: Mapping[str, torch.Tensor]) -> None:
        """Brings the network back."""
        if unsaved:
            for name, module in self._aside.items():
                setattr(self, name, module)
            self._aside = {}
        super().restore(unsaved)


class PromptStart(NamedTuple):
    """What a new prompt may start from."""

    # The base's word embeddings.
    words: nn.Embedding
    # False where a file's weights follow, which need no start and no network.
    initialise: bool


class PromptMethod(ABC):
    """How one kind of prompt is made. Stateless."""

    # What PEFT's tables have for the method; no parameter begins with it.
    prefix: ClassVar[str]
    # The vectors are keys and values of each attention layer.
    keys_and_values: ClassVar[bool] = False
    # In models with two halves, the second half of the vectors stands before the decoder's input.
    in_decoder: ClassVar[bool] = False

    @abstractmethod
    def encoder(self, config: Any, start: PromptStart) -> PromptEncoder:
        """A new prompt; `config` is complete."""

    def complete(self, config: Any, model: nn.Module) -> None:
        """Fills in what the config leaves to the base.

        Raises:
            AdapterError: where the base does not tell, or cannot take such a prompt.
        """
        if config.num_transformer_submodules is None:
            config.num_transformer_submodules = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM else 1
        shape = text_config(model)
        fill(config, "num_layers", shape, "num_hidden_layers")
        fill(config, "num_attention_heads", shape, "num_attention_heads")
        if config.token_dim is None:
            # Not the hidden size: some models (OPT-350m) embed words in fewer dimensions and project them.
            config.token_dim = word_embeddings(model).embedding_dim

    def call(self, base: Callable[..., Any], arguments: dict[str, Any], config: Any) -> Any:  # noqa: ARG002  (for losses)
        """The base's outputs for arguments that hold the prompt."""
        return base(**arguments)

    def own_loss(self, config: Any) -> str:  # noqa: ARG002  (few have one)
        """Why a loss made from logits alone is not the method's, or nothing."""
        return ""


def text_config(model: Any) -> Any:
    """The config of the part of a model that reads text.

    Raises:
        AdapterError: for a model without a config of Transformers.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise AdapterError(f"{type(model).__name__} is no model of Transformers, which a prompt needs")
    return config.get_text_config()


def word_embeddings(model: Any) -> nn.Embedding:
    """A model's input embeddings.

    Raises:
        AdapterError: where it has none.
    """
    try:
        words = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        words = None
    if words is None:
        raise AdapterError(f"{type(model).__name__} has no word embeddings, which a prompt needs")
    found: nn.Embedding = words
    return found


def fill(config: Any, field: str, shape: Any, name: str) -> None:
    """Sets a field that is not set to what the base's config says.

    Raises:
        AdapterError: where it says nothing.
    """
    if getattr(config, field) is None:
        value = getattr(shape, name, None)
        if not isinstance(value, int):
            raise AdapterError(f"{field}: the base's config does not say; set it")
        setattr(config, field, value)


def text_tokens(config: WordedPromptConfig, count: int) -> list[int]:
    """`count` tokens of the text that a prompt starts as: cut, or repeated.

    Raises:
        AdapterError: where no tokenizer is named, or the text has no tokens.
    """
    from transformers import AutoTokenizer

    name = config.tokenizer_name_or_path or config.base_model_name_or_path
    if name is None:
        raise AdapterError("tokenizer_name_or_path is missing: prompt_tuning_init_text needs a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **(config.tokenizer_kwargs or {}))
    except (OSError, ValueError) as error:
        raise AdapterError(f"tokenizer_name_or_path: {name} cannot be read: {error}") from error
    # As PEFT writes it, which needs it to read the file.
    config.tokenizer_name_or_path = name
    ids: list[int] = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    if not ids:
        raise AdapterError(f"prompt_tuning_init_text: {config.prompt_tuning_init_text!r} has no tokens")
    return (ids * -(-count // len(ids)))[:count]


def start_as_words(encoder: PromptEncoder, words: nn.Module, ids: torch.Tensor) -> None:
    """Lets a prompt start as the base's own embeddings of tokens."""
    device = next(words.parameters()).device
    with torch.no_grad():
        encoder.embedding.weight.copy_(words(ids.to(device)))
