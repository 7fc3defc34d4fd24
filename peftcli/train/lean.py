"""Modules of the base that keep less for the backward pass while they are trained, in place of its own.

Norms and gated layers are most of what a Transformer keeps. They are found by their parts, and taken on trial: a module
is replaced where ours, given the same, gives the same. Their children, weights and names stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.plain import is_called_plainly
from peftcli.kernels.gated_product import gated_product
from peftcli.kernels.rms_norm import rms_norm

_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class LeanGated(nn.Module):
    """down(activation(gate(x)) · up(x)), of the parts of another module."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.act_fn = module.gate_proj, module.up_proj, module.act_fn
        self.down_proj = module.down_proj
        self.training = module.training

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, inputs)."""
        product = gated_product(self.gate_proj(x), self.up_proj(x), self.act_fn)
        found: Tensor = self.down_proj(product)
        return found


class LeanNorm(nn.Module):
    """RMSNorm with the weight of another module."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.weight = module.weight
        self.eps: float = _eps(module)
        self.training = module.training

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        return rms_norm(hidden_states, self.weight, self.eps)


@contextmanager
def lean_modules(model: nn.Module) -> Iterator[None]:
    """Puts them in, and at the end the model's own modules back."""
    replaced = []
    seen: dict[Any, bool] = {}
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            ours = _lean(module, seen)
            if ours is not None:
                setattr(parent, name, ours)
                replaced.append((parent, name, module, ours))
    try:
        yield
    finally:
        for parent, name, module, ours in reversed(replaced):
            setattr(parent, name, module)
            module.training = ours.training


def _lean(module: Any, seen: dict[Any, bool]) -> nn.Module | None:
    if not is_called_plainly(module):
        return None
    children = {name for name, _ in module.named_children()}
    weights = {name for name, _ in module.named_parameters(recurse=False)}
    if children == _GATED and not weights and not [*module.act_fn.parameters()]:
        kind = (type(module), type(module.act_fn))
        if kind not in seen:
            seen[kind] = _gates_alike(module)
        return LeanGated(module) if seen[kind] else None
    if (
        weights == {"weight"}
        and not children
        and _eps(module) is not None
        and not module.weight.requires_grad
        and _norms_alike(module)
    ):
        return LeanNorm(module)
    return None


def _eps(module: Any) -> Any:
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    return next((each for each in found if isinstance(each, float)), None)


def _gates_alike(module: Any) -> bool:
    """Whether the module's class does with its parts what ours does, seen on small ones of random weights."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"gate_proj": (3, 5), "up_proj": (3, 5), "down_proj": (5, 3)}
    parts: dict[str, nn.Module] = {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
    for part in parts.values():
        nn.init.normal_(part.weight, generator=draw)  # type: ignore[arg-type]  # a Linear's
    small = copy.copy(module)
    small.__dict__["_modules"] = parts | {"act_fn": module.act_fn}
    return _alike(small, LeanGated(small), torch.randn(2, 4, 3, generator=draw))


def _norms_alike(module: Any) -> bool:
    """The same for norms: of their own size, since some are told it."""
    weight = module.weight
    if weight.dim() != 1 or not weight.is_floating_point():
        return False
    draw = torch.Generator().manual_seed(0)
    tried = copy.copy(module)
    own = torch.randn(len(weight), generator=draw).to(weight.dtype)
    tried.__dict__["_parameters"] = {"weight": nn.Parameter(own, requires_grad=False)}
    return _alike(tried, LeanNorm(tried), torch.randn(2, 3, len(weight), generator=draw).to(weight.dtype))


def _alike(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            wanted, found = one(x), other(x)
    except (TypeError, RuntimeError, AttributeError):  # it takes other inputs than ours
        return False
    if not isinstance(wanted, Tensor) or wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    rounding = 8 * torch.finfo(wanted.dtype).eps * wanted.abs().max()
    return bool((wanted - found).abs().max() <= rounding)
