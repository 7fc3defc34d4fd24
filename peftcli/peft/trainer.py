"""What transformers.Trainer asks of a model that is not of Transformers' own classes.

It reads a class's `forward` for the names of labels, and an object's for the columns that it may pass on; and it writes
the state dict with safetensors, which takes no tensors that share memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

Forward = TypeVar("Forward", bound=Callable[..., Any])


def labelled(*names: str) -> Callable[[Forward], Forward]:
    """Says in the signature of a `forward` that it takes these labels, beside all that its base model takes."""

    def signed(forward: Forward) -> Forward:
        own = list(inspect.signature(forward).parameters.values())
        labels = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
        signature = inspect.Signature([*own[:-1], *labels, own[-1]])
        forward.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect.signature` looks for
        return forward

    return signed


def sign_as(model: nn.Module, base: nn.Module) -> None:
    """Gives a model's `forward` the signature that its base model's has."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(type(base).forward)  # type: ignore[attr-defined]  # as above
    model.forward = MethodType(forward, model)


def apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, in which none shares memory with another: of those that do, all but the first are copies."""
    seen: set[int] = set()
    separate = {}
    for key, tensor in state.items():
        is_new = tensor.is_meta or tensor.data_ptr() not in seen
        seen.add(tensor.data_ptr())
        separate[key] = tensor if is_new else tensor.clone()
    return separate
