"""Where aLoRA acts: from the last time on that a row has the adapter's invocation tokens.

Layers are told by hooks, for as long as a call of the model lasts. Parts that are checkpointed run again in the
backward pass, when the call is over: each takes along what it was told. Suffixes: B rows, T tokens, N of an invocation,
S places where it may stand.

Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", 2025, arXiv:2504.12397.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from peftcli.adapters.method import Call
from peftcli.errors import DataError
from peftcli.methods.lora.layer import LoraLayer

# By adapter, of each row how many of its last tokens it acts on (B,).
Offsets = Mapping[str, torch.Tensor]


def last_calls(input_ids_BT: torch.Tensor, invocation: Sequence[int]) -> torch.Tensor:
    """Of each row how many tokens it has from the last invocation on (B,); 0 where it has none."""
    tokens_N = torch.tensor(invocation, device=input_ids_BT.device)
    length = input_ids_BT.shape[1]
    if length < len(tokens_N):
        return input_ids_BT.new_zeros(len(input_ids_BT))
    found_BS = (input_ids_BT.unfold(1, len(tokens_N), 1) == tokens_N).all(-1)
    left_S = torch.arange(length, len(tokens_N) - 1, -1, device=input_ids_BT.device)
    return torch.where(found_BS, left_S, length + 1).amin(1) % (length + 1)


def uncalled(rows: Iterable[Sequence[int]], invocation: Sequence[int]) -> str:
    """How many rows have no invocation, in a line; nothing where all have one.

    Raises:
        DataError: where none has one.
    """
    found = [bool(last_calls(torch.as_tensor(row)[None], invocation)) for row in rows]
    if found and not any(found):
        raise DataError(
            f"adapter.alora_invocation_tokens: no training row has the tokens {list(invocation)}, so the adapter would "
            "never act; give those that the tokenizer makes of the text that is to call it"
        )
    missing = found.count(False)
    return (
        f"{missing:,} of {len(found):,} rows do not call the adapter (alora_invocation_tokens)"
        if missing
        else ""
    )


@contextmanager
def activated(tuner: Any, names: Sequence[str], call: Call) -> Iterator[None]:
    """Tells the tuner's layers where these adapters act, for as long as a call lasts."""
    offsets = _offsets(tuner, names, call)
    tell = partial(_telling, offsets=offsets, repeats=call.repeats)
    with ExitStack() as stack:
        stack.enter_context(tell(tuner.model))
        if tuner.model.training:
            stack.enter_context(_carrying(tuner.model, tell))
        yield


def _offsets(tuner: Any, names: Sequence[str], call: Call) -> Offsets:
    if call.offsets is not None:
        return dict.fromkeys(names, torch.tensor([offset or 0 for offset in call.offsets]))
    first = call.args[0] if call.args else call.kwargs.get("inputs")
    input_ids = call.kwargs.get("input_ids", first)
    if not isinstance(input_ids, torch.Tensor) or input_ids.is_floating_point():
        warnings.warn(
            "aLoRA looks for its invocation tokens in input_ids; without them it does not act", stacklevel=2
        )
        return {}
    input_ids_BT = input_ids if input_ids.dim() > 1 else input_ids[None]
    return {name: last_calls(input_ids_BT, tuner.peft_config[name].alora_invocation_tokens) for name in names}


Tell = Callable[[nn.Module], AbstractContextManager[None]]


@contextmanager
def _telling(model: nn.Module, *, offsets: Offsets, repeats: int) -> Iterator[None]:
    """Tells the layers below a module."""

    def tell(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        told = dict(offsets)
        for name, offsets_B in offsets.items():
            if repeats > 1 and args and len(args[0]) == repeats * len(offsets_B):
                told[name] = offsets_B.repeat_interleave(repeats)
        return args, {**kwargs, "alora_offsets": told}

    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and any(name in layer.r for name in offsets)
    ]
    handles = [layer.register_forward_pre_hook(tell, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _carrying(model: nn.Module, tell: Tell) -> Iterator[None]:
    """Lets the checkpointed parts of a model (as Transformers marks them) take along what layers are told."""
    parts: list[Any] = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    functions = [part._gradient_checkpointing_func for part in parts]  # noqa: SLF001  (Transformers has no other way)
    for part, function in zip(parts, functions, strict=True):
        part._gradient_checkpointing_func = partial(_checkpointed, function, partial(tell, part))  # noqa: SLF001
    try:
        yield
    finally:
        for part, function in zip(parts, functions, strict=True):
            part._gradient_checkpointing_func = function  # noqa: SLF001


def _checkpointed(
    checkpoint: Callable[..., Any],
    telling: Callable[[], AbstractContextManager[None]],
    run: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Checkpoints `run`, which is told whenever it runs."""

    def told(*args: Any, **kwargs: Any) -> Any:
        with telling():
            return run(*args, **kwargs)

    return checkpoint(told, *args, **kwargs)
