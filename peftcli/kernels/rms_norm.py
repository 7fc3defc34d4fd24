"""RMSNorm with a frozen weight, beside its plain reference.

Notable: only the input, which the model keeps anyway, and one number a row are kept for the backward pass; layers that
know recipes make the output anew.

Shape suffix: H numbers of a token.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftcli.kernels.recipe import leave_recipe


def reference(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Weight · x / sqrt(mean(x²) + eps), in float32 up to the weight, as Transformers' Llama has it.

    Args:
        x: (…, H).
        weight_H: of x's dtype or another.
        eps: what is added to the mean square.
    """
    wide = x.to(torch.float32)
    return weight_H * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """The same as `reference`, with a recipe on it where a gradient is taken; none is of the weight."""
    wide = x.to(torch.float32)
    with torch.no_grad():
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    y: Tensor = _RmsNorm.apply(x, scale, weight_H)  # type: ignore[no-untyped-call]  # torch's
    return leave_recipe(y, _normed, x, scale, weight_H)


def _normed(x: Tensor, scale: Tensor, weight_H: Tensor) -> Tensor:
    return weight_H * (x.to(torch.float32) * scale).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight_H: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, weight_H)
        return _normed(x, scale, weight_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_H = ctx.saved_tensors
        g, wide = (slope * weight_H).to(x.dtype).to(torch.float32), x.to(torch.float32)
        # scale · (g - n · mean(g · n)) with n = scale · x, in as few passes as there can be.
        along = (g * wide).mean(-1, keepdim=True) * scale**3
        return g.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype), None, None
