"""How a prompt gets into what a model generates: each step of `generate` is prepared with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from peftcli.adapters.prompted import PromptedModel
from peftcli.errors import AdapterError
from peftcli.peft.prompt_forward import (
    Arguments,
    Prompt,
    before_decoder,
    behind_prefix,
    current,
    input_embeddings,
    longer,
    moved_along,
)


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


def preparing(prompt: Prompt, task_ids: torch.Tensor | None = None) -> Callable[..., Arguments]:
    """The base's `prepare_inputs_for_generation`, with the prompt: it comes in where the cache is still empty."""
    prepare = prompt.model.prepare_inputs_for_generation

    # `generate` looks at its signature.
    @functools.wraps(prepare)
    def prepared(input_ids: torch.Tensor, **arguments: Any) -> Arguments:
        cache, rows = arguments.get("past_key_values"), len(input_ids)
        if getattr(cache, "is_compileable", False):
            raise AdapterError(
                "a cache of fixed size has no place for a prompt; leave cache_implementation out"
            )
        # Without a cache each step is the first; some models give one back all the same.
        is_first = cache is None or not cache.get_seq_length() or arguments.get("use_cache") is False
        step: Arguments
        if prompt.method.keys_and_values:
            moved = behind_prefix(prompt, arguments, rows)
            if is_first:
                moved["past_key_values"] = prompt.cache(rows)
            step = prepare(input_ids, **moved)
        elif prompt.has_decoder:
            step = prepare(input_ids, **arguments)
            if prompt.decodes:
                step = _decoded(prompt, step, task_ids, is_first=is_first)
        else:
            moved = moved_along(prompt, arguments, rows)
            if is_first:
                moved |= _first(prompt, input_ids, arguments, task_ids)
            step = prepare(input_ids, **moved)
        return step

    return prepared


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


def _first(
    prompt: Prompt, input_ids: torch.Tensor, arguments: Arguments, task_ids: torch.Tensor | None
) -> Arguments:
    """What the first step of a model without an encoder gets more: the prompt, before all that there is."""
    given = arguments.get("inputs_embeds") if arguments.get("is_first_iteration") else None
    embedded = prompt.embedded(input_ids) if given is None else given
    vectors = prompt.vectors(len(embedded), task_ids).to(embedded)
    return {
        "inputs_embeds": torch.cat([vectors, embedded], dim=1),
        "is_first_iteration": True,
        "next_sequence_length": None,
    }


def _before_encoder(prompt: Prompt, arguments: Arguments, task_ids: torch.Tensor | None) -> Arguments:
    """The virtual tokens before the encoder's input: it is run once, before the first step."""
    moved = dict(arguments)
    if "inputs" in moved:
        moved["input_ids"] = moved.pop("inputs")
    embedded = input_embeddings(prompt, moved)
    vectors = prompt.vectors(len(embedded), task_ids)[:, : prompt.length].to(embedded)
    moved.pop("input_ids", None)
    moved["inputs_embeds"] = torch.cat([vectors, embedded], dim=1)
    if (mask := arguments.get("attention_mask")) is not None:
        moved["attention_mask"] = longer(prompt, mask, len(embedded), 1, "attention_mask")
    return moved


def _decoded(prompt: Prompt, step: Arguments, task_ids: torch.Tensor | None, *, is_first: bool) -> Arguments:
    """A step of a decoder that has virtual tokens of its own."""
    rows = len(step["decoder_input_ids"])
    if is_first:
        return before_decoder(prompt, step, prompt.vectors(rows, task_ids)[:, prompt.length :])
    if (mask := step.get("decoder_attention_mask")) is not None:
        step["decoder_attention_mask"] = longer(prompt, mask, rows, 1, "decoder_attention_mask")
    return step
