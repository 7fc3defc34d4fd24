"""The product of a gate's activation and what it gates, beside its plain reference.

Notable: only the two factors as they come are kept for the backward pass. The activation is computed anew there, and so
is the product itself for layers that know recipes.

Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.kernels.recipe import leave_recipe

Activation = Callable[[Tensor], Tensor]


def reference(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) · up, elementwise; `activation` has no weights and draws nothing."""
    return activation(gate) * up


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """The same as `reference`, with a recipe on it where a gradient is taken."""
    product: Tensor = _GatedProduct.apply(gate, up, activation)  # type: ignore[no-untyped-call]  # torch's
    return leave_recipe(product, partial(_product, activation), gate, up)


def _product(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    activated = activation(gate)
    # In place where nothing but this has the activation.
    return activated * up if activated is gate or activated.requires_grad else activated.mul_(up)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _product(activation, gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            own = gate.detach().requires_grad_()
            activated = ctx.activation(own)
        (gate_slope,) = torch.autograd.grad(activated, own, slope * up)
        made = activated.detach()
        return gate_slope, made * slope if activated is own else made.mul_(slope), None
