"""Tensors that are made again in the backward pass rather than kept for it.

Autograd keeps what a product was made of. Where that is itself cheaply made of what is kept anyway (a norm's output of
its input), whoever makes it leaves a recipe on it, and a product that knows recipes keeps that instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

_NAME = "peftcli_recipe"


class Recipe:
    """How a tensor is made of others; products that share it make it once."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self._users = 0
        self._made: Tensor | None = None

    def join(self) -> None:
        """One more product will ask for the tensor."""
        self._users += 1

    def again(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tensor, of the inputs as they were kept; the last product to ask for it lets it go."""
        self._users -= 1
        made = self._make(*inputs) if self._made is None else self._made
        self._made = made if self._users > 0 else None
        return made


class Left(NamedTuple):
    """What is left on a tensor: its recipe and what it is made of. A recipe alone must not keep that alive."""

    recipe: Recipe
    inputs: tuple[Tensor, ...]


def leave_recipe(tensor: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The tensor, with what makes it again on it; nothing where it takes no gradient."""
    if tensor.requires_grad:
        setattr(tensor, _NAME, Left(Recipe(make), inputs))
    return tensor


def left_on(tensor: Tensor) -> Left | None:
    """What is left on this tensor; on views and copies of it there is nothing."""
    return getattr(tensor, _NAME, None)
