"""How a prompt gets into a model: what becomes of the arguments of its `forward`.

A prompt is vectors before the input's embeddings, or keys and values that are in the cache already when the input
comes. Either way the model sees N tokens more: masks, positions and labels move along. Logits stand for the virtual
tokens of an input, too, as PEFT has them: those of its own tokens are the last. Shapes: B rows, N virtual tokens, T
tokens, E numbers of an embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from peftcli.adapters.config import TaskType
from peftcli.adapters.prompt_method import PromptEncoder, PromptMethod, text_config, word_embeddings
from peftcli.adapters.prompted import PromptedModel
from peftcli.errors import AdapterError

IGNORED = -100
Arguments = dict[str, Any]


class Prompt:
    """The prompt in use, with the model that it goes into."""

    def __init__(self, model: nn.Module, method: PromptMethod, config: Any, encoder: PromptEncoder) -> None:
        self.model: Any = model
        self.method = method
        self.config = config
        self.encoder = encoder
        self.length: int = config.num_virtual_tokens
        self.has_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    @property
    def decodes(self) -> bool:
        """Whether a part of the prompt stands before the decoder's input."""
        return self.has_decoder and self.method.in_decoder and self.config.num_transformer_submodules == 2

    def vectors(self, rows: int, task_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The virtual tokens of B rows, (B, N, E), in the dtype that the base has."""
        vectors = self.encoder.prompt(rows, task_ids)
        return vectors.to(getattr(self.model, "dtype", vectors.dtype))

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """The base's embeddings of tokens, (B, T, E)."""
        embedded: torch.Tensor = word_embeddings(self.model)(ids)
        return embedded

    def cache(self, rows: int) -> Cache:
        """The keys and values of B rows, as if the model had seen N tokens."""
        shape = (rows, self.length, self.config.num_layers, 2, self.config.num_attention_heads, -1)
        layers = self.vectors(rows).reshape(shape).permute(2, 3, 0, 4, 1, 5)  # (L, 2, B, heads, N, D)
        if self.has_decoder:
            own = DynamicCache()
            for at in range(len(layers)):
                # PEFT's files are read so: of four tensors in a row a decoder layer takes the first two.
                step = self.config.num_transformer_submodules
                own.update(*layers[at * step % len(layers)], at)
            return EncoderDecoderCache(own, DynamicCache())
        text = text_config(self.model)
        cache = DynamicCache(config=text)
        reached = 0
        for at, (layer, each) in enumerate(zip(cache.layers, text.per_layer_config, strict=True)):
            if at < len(layers) and isinstance(layer, DynamicLayer):
                reached += self._enter(cache, at, layers[at], each)
        if not reached:
            raise AdapterError(
                "no layer has keys of the prefix's shape; set token_dim and num_attention_heads"
            )
        return cache

    def _enter(self, cache: Cache, at: int, layer: torch.Tensor, shape: Any) -> bool:
        """Puts a prefix into a layer; where layers differ, those with smaller keys get a part of it."""
        heads, size = layer.shape[2], layer.shape[4]
        if getattr(shape, "layer_types", None) and getattr(shape, "num_key_value_heads", None):
            wanted = shape.num_key_value_heads, getattr(shape, "head_dim", None) or size
            if wanted[0] > heads or wanted[1] > size:
                return False
            heads, size = wanted
        keys, values = layer[:, :, :heads, :, :size]
        cache.update(keys, values, at)
        return True


def current(tuner: PromptedModel) -> Prompt | None:
    """The prompt in use; None where the model acts as its base."""
    found = tuner.current
    return None if found is None else Prompt(tuner.model, *found)


def forward(tuner: PromptedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The base's outputs with the prompt in use."""
    base: Any = tuner.model
    arguments: Arguments = {**_named(base, args), **kwargs}
    task_ids = arguments.pop("task_ids", None)
    prompt = current(tuner)
    if prompt is None:
        return base(**arguments)
    if prompt.method.keys_and_values:
        return _with_prefix(prompt, arguments)
    is_classified = prompt.config.task_type == TaskType.SEQ_CLS and not prompt.has_decoder
    if is_classified and arguments.get("input_ids") is not None:
        return _with_marked_ids(prompt, arguments, task_ids)
    insert = _before_halves if prompt.has_decoder else _before_input
    return prompt.method.call(base, insert(prompt, arguments, task_ids), prompt.config)


def _named(base: nn.Module, args: tuple[Any, ...]) -> Arguments:
    """Positional arguments by their names."""
    return dict(inspect.signature(base.forward).bind_partial(*args).arguments) if args else {}


# Vectors before embeddings.


def _before_input(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the input of a model that has one."""
    embedded = input_embeddings(prompt, arguments)
    vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
    moved = moved_along(prompt, arguments, len(embedded))
    moved["inputs_embeds"] = torch.cat([vectors, embedded], dim=1)
    moved.pop("input_ids", None)
    return moved


def input_embeddings(prompt: Prompt, arguments: Arguments) -> torch.Tensor:
    """The embeddings of the input, (B, T, E), whichever way it is given."""
    given = arguments.get("inputs_embeds")
    if given is None:
        ids = arguments.get("input_ids")
        if ids is None:
            raise AdapterError("input_ids or inputs_embeds is needed: the prompt stands before them")
        given = prompt.embedded(ids)
    embeddings: torch.Tensor = given
    return embeddings


def moved_along(prompt: Prompt, arguments: Arguments, rows: int) -> Arguments:
    """What goes with the input, with N places more at its front."""
    moved = dict(arguments)
    for name, value in (("attention_mask", 1), ("token_type_ids", 0), ("labels", IGNORED)):
        tensor = arguments.get(name)
        # A label of a whole row stays as it is.
        if tensor is not None and (name != "labels" or (tensor.dim() == 2 and _labels_tokens(prompt))):
            moved[name] = longer(prompt, tensor, rows, value, name)
    if (positions := arguments.get("position_ids")) is not None:
        moved["position_ids"] = _positions(prompt, positions)
    for name in ("start_positions", "end_positions"):
        if arguments.get(name) is not None:
            moved[name] = arguments[name] + prompt.length
    kept = arguments.get("logits_to_keep")
    if isinstance(kept, torch.Tensor):
        moved["logits_to_keep"] = kept + prompt.length
    return moved


def _labels_tokens(prompt: Prompt) -> bool:
    return prompt.config.task_type in (TaskType.CAUSAL_LM, TaskType.TOKEN_CLS)


def longer(prompt: Prompt, tensor: torch.Tensor, rows: int, value: int, name: str = "") -> torch.Tensor:
    """(B, T) with N equal columns before it."""
    if tensor.dim() != 2:
        raise AdapterError(
            f"{name} has {tensor.dim()} dimensions; with a prompt it must have two, (rows, tokens)"
        )
    return torch.cat([tensor.new_full((rows, prompt.length), value), tensor.expand(rows, -1)], dim=1)


def _positions(prompt: Prompt, positions: torch.Tensor) -> torch.Tensor:
    """The prompt has the first N positions, and the tokens the ones after."""
    first = torch.arange(prompt.length, dtype=positions.dtype, device=positions.device)
    return torch.cat([first.expand(*positions.shape[:-1], -1), positions + prompt.length], dim=-1)


def _with_marked_ids(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Any:
    """Classifies rows by models that look for a row's last token among its ids, which embeddings do not tell.

    Some other token than padding stands for the virtual ones, and its embeddings are replaced.
    """
    ids = arguments["input_ids"]
    padding = getattr(text_config(prompt.model), "pad_token_id", None)
    vectors = prompt.vectors(len(ids), task_ids)
    replaced = []

    def replace(_: nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        replaced.append(True)
        return torch.cat([vectors.to(embedded), embedded[:, prompt.length :]], dim=1)

    moved = moved_along(prompt, arguments, len(ids))
    moved["input_ids"] = longer(prompt, ids, len(ids), 1 if padding == 0 else 0)
    handle = word_embeddings(prompt.model).register_forward_hook(replace)
    try:
        outputs = prompt.method.call(prompt.model, moved, prompt.config)
    finally:
        handle.remove()
    assert replaced, "the model's input embeddings were not asked"
    return outputs


def _before_halves(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the encoder's input, and for some methods others before the decoder's."""
    embedded = input_embeddings(prompt, arguments)
    vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
    moved = dict(arguments)
    moved.pop("input_ids", None)
    moved["inputs_embeds"] = torch.cat([vectors[:, : prompt.length], embedded], dim=1)
    if (mask := arguments.get("attention_mask")) is not None:
        moved["attention_mask"] = longer(prompt, mask, len(embedded), 1, "attention_mask")
    return before_decoder(prompt, moved, vectors[:, prompt.length :]) if prompt.decodes else moved


def before_decoder(prompt: Prompt, arguments: Arguments, vectors: torch.Tensor) -> Arguments:
    """Virtual tokens before the decoder's input, (B, N, E)."""
    moved = dict(arguments)
    rows = len(vectors)
    embedded, ids, labels = (
        moved.pop(name, None) for name in ("decoder_inputs_embeds", "decoder_input_ids", "labels")
    )
    if embedded is None:
        if ids is None:
            ids = prompt.model.prepare_decoder_input_ids_from_labels(labels)
        embedded = prompt.embedded(ids)
    moved["decoder_inputs_embeds"] = torch.cat([vectors.to(embedded), embedded], dim=1)
    if labels is not None:
        moved["labels"] = longer(prompt, labels, rows, IGNORED, "labels")
    if (mask := moved.get("decoder_attention_mask")) is not None:
        moved["decoder_attention_mask"] = longer(prompt, mask, rows, 1, "decoder_attention_mask")
    return moved


# Keys and values before those of the input.


def _with_prefix(prompt: Prompt, arguments: Arguments) -> Any:
    """The base's outputs, with a prefix in its cache."""
    base = prompt.model
    if base.training and getattr(base, "is_activation_checkpointing", False):
        raise AdapterError(
            "a prefix is in the cache, which activation checkpointing leaves out; switch it off"
        )
    given = arguments.get("input_ids")
    if given is None:
        given = arguments.get("inputs_embeds")
    if given is None:
        raise AdapterError("input_ids or inputs_embeds is needed")
    moved = behind_prefix(prompt, arguments, len(given))
    cache = prompt.cache(len(given))
    if "past_key_values" in inspect.signature(base.forward).parameters:
        return prompt.method.call(base, {**moved, "past_key_values": cache}, prompt.config)
    with _given(_backbone(base), past_key_values=cache):
        return prompt.method.call(base, moved, prompt.config)


def behind_prefix(prompt: Prompt, arguments: Arguments, rows: int) -> Arguments:
    """What goes with the input when N tokens are in the cache before it."""
    moved = dict(arguments)
    name = "decoder_attention_mask" if prompt.has_decoder else "attention_mask"
    if (mask := arguments.get(name)) is not None:
        moved[name] = longer(prompt, mask, rows, 1, name)
    if (positions := arguments.get("position_ids")) is not None:
        moved["position_ids"] = positions + prompt.length
    return moved


def _backbone(base: Any) -> nn.Module:
    """The part below a head, for models whose head does not pass a cache on."""
    backbone = getattr(base, getattr(base, "base_model_prefix", ""), None)
    if backbone is None or "past_key_values" not in inspect.signature(backbone.forward).parameters:
        raise AdapterError(
            f"{type(base).__name__} takes no keys and values from before; it can have no prefix"
        )
    found: nn.Module = backbone
    return found


@contextmanager
def _given(module: nn.Module, **more: Any) -> Iterator[None]:
    """Gives a module more arguments, for as long as the context lasts."""

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[Any, ...], Arguments]:
        return args, {**kwargs, **more}

    handle = module.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
