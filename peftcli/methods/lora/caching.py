"""DoRA's norms, kept while nothing is trained: they need a product as large as the weight, at every call.

Only where that was asked for, since a weight can be changed in ways that cannot be noticed (through `.data`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from peftcli.adapters.weights import weight_of

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer

# By layer and adapter: what the norm was made of, and the norm.
Norms = WeakKeyDictionary[Any, dict[str, tuple[Any, torch.Tensor]]]

_NORMS: ContextVar[Norms | None] = ContextVar("norms", default=None)


class DoraCaching:
    """Keeps DoRA's norms of models in evaluation mode: as a context, or from a call of it until the next.

    The norms go when the context ends, and are made anew where a weight or a factor has changed.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._token: Token[Norms | None] | None = None

    def __enter__(self) -> None:
        self._token = _NORMS.set(WeakKeyDictionary() if self.enabled else None)

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _NORMS.reset(self._token)

    def __call__(self, enabled: bool = True) -> None:
        """From now on."""
        _NORMS.set(WeakKeyDictionary() if enabled else None)


def remembered(
    layer: LoraLayer, name: str, measure: Callable[[LoraLayer, str], torch.Tensor]
) -> torch.Tensor:
    """An adapter's norm on a layer: the one that is kept, where one is and nothing has changed."""
    # Compiled code makes the norm itself: it cannot ask for what is kept.
    norms = None if torch.compiler.is_compiling() or layer.training else _NORMS.get()
    if norms is None:
        return measure(layer, name)
    made_of = tuple(map(_state, (weight_of(layer.get_base_layer()), *layer.factors(name))))
    kept = norms.setdefault(layer, {})
    if name not in kept or kept[name][0] != (made_of, layer.scaling[name]):
        kept[name] = (made_of, layer.scaling[name]), measure(layer, name)
    return kept[name][1]


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    """What tells whether a tensor is another, or was changed in place."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  (PyTorch's only way)
