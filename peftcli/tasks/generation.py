"""Text that a model generates: where it ends, how long it can be, and how an evaluation has it written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftcli.recipe.training import Training
from peftcli.tasks.unwrapped import unwrapped


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text: the tokenizer's, and the base's own."""
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def context_length(model: Any) -> int | None:
    """How many places there are for tokens, a prompt's virtual ones apart; None where nothing limits them."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    adapter = getattr(model, "active_peft_config", None)
    return None if limit is None else limit - (getattr(adapter, "num_virtual_tokens", None) or 0)


def generated(
    model: nn.Module,
    inputs: Mapping[str, Any],
    tokenizer: Any,
    training: Training,
    *,
    longest: int,
    **settings: Any,
) -> Tensor:
    """What an evaluation generates of a batch by an encoder-decoder: the likeliest text, the same at every call.

    Args:
        model: with or without an adapter.
        inputs: of its encoder, and what else its `generate` takes.
        tokenizer: of the texts.
        training: how it is to be done; what it leaves open is left to the base's own generation config.
        longest: tokens at most, where `training.generation_max_length` says nothing.
        **settings: of the GenerationConfig.

    Returns:
        Tokens, (B, T), from the one that the decoder starts with.
    """
    base: Any = unwrapped(model)
    places = context_length(model if hasattr(model, "active_peft_config") else base)
    length = training.generation_max_length or longest
    config = copy.deepcopy(base.generation_config)
    config.update(
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=None,
        max_length=length if places is None else min(length, places),
        eos_token_id=sorted(end_tokens(base, tokenizer)) or None,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    if training.generation_num_beams is not None:
        config.update(num_beams=training.generation_num_beams)
    generate: Any = model.generate
    tokens: Tensor = generate(**inputs, generation_config=config)
    return tokens
