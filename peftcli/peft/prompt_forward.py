"""How a prompt gets into a model: what becomes of the arguments of its `forward`, and of each step of `generate`.

A prompt is vectors before the input's embeddings, or keys and values that are in the cache already when the input
comes. Either way the model sees N tokens more: masks, positions and labels move along. Logits stand for the virtual
tokens of an input, too, as PEFT has them: those of its own tokens are the last. Shapes: B rows, N virtual tokens, T
tokens, E numbers of an embedding.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
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
    if prompt.config.task_type == TaskType.SEQ_CLS and not prompt.has_decoder:
        if arguments.get("input_ids") is not None:
            return _with_marked_ids(prompt, arguments, task_ids)
    insert = _before_halves if prompt.has_decoder else _before_input
    return prompt.method.call(base, insert(prompt, arguments, task_ids), prompt.config)


def _named(base: nn.Module, args: tuple[Any, ...]) -> Arguments:
    """Positional arguments by their names."""
    return dict(inspect.signature(base.forward).bind_partial(*args).arguments) if args else {}


# Vectors before embeddings.


def _before_input(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the input of a model that has one."""
    embedded = _input(prompt, arguments)
    vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
    moved = _moved(prompt, arguments, len(embedded))
    moved["inputs_embeds"] = torch.cat([vectors, embedded], dim=1)
    moved.pop("input_ids", None)
    return moved


def _input(prompt: Prompt, arguments: Arguments) -> torch.Tensor:
    given = arguments.get("inputs_embeds")
    if given is None:
        ids = arguments.get("input_ids")
        if ids is None:
            raise AdapterError("input_ids or inputs_embeds is needed: the prompt stands before them")
        given = prompt.embedded(ids)
    embeddings: torch.Tensor = given
    return embeddings


def _moved(prompt: Prompt, arguments: Arguments, rows: int) -> Arguments:
    """What goes with the input, with N places more at its front."""
    moved = dict(arguments)
    for name, value in (("attention_mask", 1), ("token_type_ids", 0), ("labels", IGNORED)):
        tensor = arguments.get(name)
        # A label of a whole row stays as it is.
        if tensor is not None and (name != "labels" or tensor.dim() == 2 and _labels_tokens(prompt)):
            moved[name] = _longer(prompt, tensor, rows, value, name)
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


def _longer(prompt: Prompt, tensor: torch.Tensor, rows: int, value: int, name: str = "") -> torch.Tensor:
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

    moved = _moved(prompt, arguments, len(ids))
    moved["input_ids"] = _longer(prompt, ids, len(ids), 1 if padding == 0 else 0)
    handle = word_embeddings(prompt.model).register_forward_hook(replace)
    try:
        outputs = prompt.method.call(prompt.model, moved, prompt.config)
    finally:
        handle.remove()
    assert replaced, "the model's input embeddings were not asked"
    return outputs


def _before_halves(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the encoder's input, and for some methods others before the decoder's."""
    embedded = _input(prompt, arguments)
    vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
    moved = dict(arguments)
    moved.pop("input_ids", None)
    moved["inputs_embeds"] = torch.cat([vectors[:, : prompt.length], embedded], dim=1)
    if (mask := arguments.get("attention_mask")) is not None:
        moved["attention_mask"] = _longer(prompt, mask, len(embedded), 1, "attention_mask")
    return _before_decoder(prompt, moved, vectors[:, prompt.length :]) if prompt.decodes else moved


def _before_decoder(prompt: Prompt, arguments: Arguments, vectors: torch.Tensor) -> Arguments:
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
        moved["labels"] = _longer(prompt, labels, rows, IGNORED, "labels")
    if (mask := moved.get("decoder_attention_mask")) is not None:
        moved["decoder_attention_mask"] = _longer(prompt, mask, rows, 1, "decoder_attention_mask")
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
    moved = _behind_prefix(prompt, arguments, len(given))
    cache = prompt.cache(len(given))
    if "past_key_values" in inspect.signature(base.forward).parameters:
        return prompt.method.call(base, {**moved, "past_key_values": cache}, prompt.config)
    with _given(_backbone(base), past_key_values=cache):
        return prompt.method.call(base, moved, prompt.config)


def _behind_prefix(prompt: Prompt, arguments: Arguments, rows: int) -> Arguments:
    """What goes with the input when N tokens are in the cache before it."""
    moved = dict(arguments)
    name = "decoder_attention_mask" if prompt.has_decoder else "attention_mask"
    if (mask := arguments.get(name)) is not None:
        moved[name] = _longer(prompt, mask, rows, 1, name)
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


# Generating.


def generate(tuner: PromptedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the base generates with the prompt in use."""
    base: Any = tuner.model
    arguments = dict(kwargs)
    task_ids = arguments.pop("task_ids", None)
    prompt = current(tuner)
    if prompt is None:
        return base.generate(*args, **arguments)
    if prompt.has_decoder and not prompt.method.keys_and_values:
        if args:
            arguments["input_ids"], args = args[0], (None, *args[1:])
        arguments = _before_encoder(prompt, arguments, task_ids)
    with _each_step(prompt, task_ids):
        return base.generate(*args, **arguments)


def _before_encoder(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the encoder's input: it is run once, before the first step."""
    moved = dict(arguments)
    if "inputs" in moved:
        moved["input_ids"] = moved.pop("inputs")
    embedded = _input(prompt, moved)
    vectors = prompt.vectors(len(embedded), task_ids)[:, : prompt.length].to(embedded)
    moved.pop("input_ids", None)
    moved["inputs_embeds"] = torch.cat([vectors, embedded], dim=1)
    if (mask := arguments.get("attention_mask")) is not None:
        moved["attention_mask"] = _longer(prompt, mask, len(embedded), 1, "attention_mask")
    return moved


@contextmanager
def _each_step(prompt: Prompt, task_ids: torch.Tensor | None) -> Iterator[None]:
    """Lets the base's `generate` prepare each of its steps with the prompt, for as long as the context lasts."""
    name = "prepare_inputs_for_generation"
    before = vars(prompt.model).get(name)
    setattr(prompt.model, name, preparing(prompt, task_ids))
    try:
        yield
    finally:
        delattr(prompt.model, name)
        if before is not None:
            setattr(prompt.model, name, before)


def preparing(prompt: Prompt, task_ids: torch.Tensor | None = None) -> Callable[..., Arguments]:
    """The base's `prepare_inputs_for_generation`, with the prompt: it comes in where the cache is still empty."""
    prepare = prompt.model.prepare_inputs_for_generation
    if prompt.has_decoder:
        step = _decoder_step
    else:
        step = _prefix_step if prompt.method.keys_and_values else _step

    # `generate` looks at its signature.
    @functools.wraps(prepare)
    def prepared(input_ids: torch.Tensor, **arguments: Any) -> Arguments:
        cache = arguments.get("past_key_values")
        if getattr(cache, "is_compileable", False):
            raise AdapterError(
                "a cache of fixed size has no place for a prompt; leave cache_implementation out"
            )
        # Without a cache each step is the first; some models give one back all the same.
        is_first = cache is None or not cache.get_seq_length() or arguments.get("use_cache") is False
        return step(prompt, prepare, input_ids, arguments, is_first, task_ids)

    return prepared


def _step(
    prompt: Prompt,
    prepare: Callable[..., Arguments],
    input_ids: torch.Tensor,
    arguments: Arguments,
    is_first: bool,
    task_ids: torch.Tensor | None,
) -> Arguments:
    moved = _moved(prompt, arguments, len(input_ids))
    if is_first:
        given = arguments.get("inputs_embeds") if arguments.get("is_first_iteration") else None
        embedded = prompt.embedded(input_ids) if given is None else given
        vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
        moved |= {
            "inputs_embeds": torch.cat([vectors, embedded], dim=1),
            "is_first_iteration": True,
            "next_sequence_length": None,
        }
    return prepare(input_ids, **moved)


def _prefix_step(
    prompt: Prompt,
    prepare: Callable[..., Arguments],
    input_ids: torch.Tensor,
    arguments: Arguments,
    is_first: bool,
    _: torch.Tensor | None,
) -> Arguments:
    moved = _behind_prefix(prompt, arguments, len(input_ids))
    if is_first:
        moved["past_key_values"] = prompt.cache(len(input_ids))
    return prepare(input_ids, **moved)


def _decoder_step(
    prompt: Prompt,
    prepare: Callable[..., Arguments],
    input_ids: torch.Tensor,
    arguments: Arguments,
    is_first: bool,
    task_ids: torch.Tensor | None,
) -> Arguments:
    if prompt.method.keys_and_values:
        return _prefix_step(prompt, prepare, input_ids, arguments, is_first, task_ids)
    moved = prepare(input_ids, **arguments)
    if not prompt.decodes:
        return moved
    if is_first:
        vectors = prompt.vectors(len(input_ids), task_ids)[:, prompt.length :]
        return _before_decoder(prompt, moved, vectors)
    if (mask := moved.get("decoder_attention_mask")) is not None:
        moved["decoder_attention_mask"] = _longer(prompt, mask, len(input_ids), 1, "decoder_attention_mask")
    return moved
