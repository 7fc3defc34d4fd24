"""A frozen linear layer with a LoRA update as one autograd function, beside its plain reference.

Notable: of all activations only x (in its own dtype, which layers that share an input share; or what makes it anew,
where that is left on it) and the rank-R product are kept for the backward pass, where dropout's mask is drawn again
from the state that its generator had; the update is added to the base's product in place, forward and backward; and
where x takes no gradient (the first adapted layer of a model whose embeddings are frozen), the large product that would
make it is not computed.

Shape suffixes: N rows (batch × tokens), I inputs, O outputs, R rank.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from peftcli.kernels.recipe import Left, left_on


class Weights(NamedTuple):
    """What the layer multiplies by. The adapter may be wider than the base: it then works in its own dtype."""

    W_OI: Tensor
    bias_O: Tensor | None  # noqa: N815  (the suffix names the shape)
    A_RI: Tensor
    B_OR: Tensor
    scaling: float


def reference(x: Tensor, weights: Weights, dropout: float = 0.0) -> Tensor:
    """W x + bias + scaling · B A dropout(x), as PyTorch's own operations: what the function below must equal.

    Args:
        x: (…, I).
        weights: the layer's.
        dropout: the share of x that the update does not see.
    """
    W_OI, bias_O, A_RI, B_OR, scaling = weights
    base = F.linear(x, W_OI, bias_O)
    seen = F.dropout(x.to(A_RI.dtype), dropout)
    return (base + F.linear(F.linear(seen, A_RI), B_OR) * scaling).to(base.dtype)


def fused(x: Tensor, weights: Weights, dropout: float = 0.0) -> Tensor:
    """The same as `reference`, with less memory kept and moved.

    W_OI and bias_O must take no gradient: none is computed for them.
    """
    y: Tensor = _LoraLinear.apply(x, *weights, dropout, left_on(x))  # type: ignore[no-untyped-call]  # torch's
    return y


def without_gradient(x: Tensor, weights: Weights) -> Tensor:
    """The same where nothing takes a gradient and nothing is dropped: few operations, since tokens come one by one."""
    W_OI, bias_O, A_RI, B_OR, scaling = weights
    y = F.linear(x, W_OI, bias_O)
    h_NR = F.linear(x, A_RI).view(-1, A_RI.shape[0])
    y.view(-1, W_OI.shape[0]).addmm_(h_NR, B_OR.T, alpha=scaling)
    return y


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (autograd functions take tensors one by one)
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        A_RI: Tensor,
        B_OR: Tensor,
        scaling: float,
        dropout: float,
        left: Left | None,
    ) -> Tensor:
        # The result is made in its own shape and filled through a view of it: a view itself (F.linear gives one) could
        # not be changed in place by whatever comes next.
        y = x.new_empty((*x.shape[:-1], W_OI.shape[0]))
        x_NI, y_NO = x.reshape(-1, W_OI.shape[1]), y.view(-1, W_OI.shape[0])
        if bias_O is None:
            torch.mm(x_NI, W_OI.T, out=y_NO)
        else:
            torch.addmm(bias_O, x_NI, W_OI.T, out=y_NO)
        seen_NI, mask_NI, state = x_NI.to(A_RI.dtype), None, None
        if dropout:
            state = _state(x)
            seen_NI, mask_NI = _dropped(seen_NI, dropout)
        h_NR = seen_NI @ A_RI.T
        if y.dtype == h_NR.dtype:
            y_NO.addmm_(h_NR, B_OR.T, alpha=scaling)
        else:
            y_NO.copy_(torch.addmm(y_NO.to(h_NR.dtype), h_NR, B_OR.T, alpha=scaling))
        ctx.recipe, made_of = left or (None, (x,))
        if ctx.recipe is not None:
            ctx.recipe.join()
        mask_NI = mask_NI if state is None else None
        ctx.save_for_backward(mask_NI, state, h_NR, W_OI, A_RI, B_OR, *made_of)
        ctx.scaling, ctx.kept, ctx.dropout = scaling, 1 - dropout, dropout
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        mask_NI, state, h_NR, W_OI, A_RI, B_OR, *made_of = ctx.saved_tensors
        x = made_of[0] if ctx.recipe is None else ctx.recipe.again(made_of)
        gy_NO, x_NI = gy.reshape(-1, W_OI.shape[0]), x.reshape(-1, W_OI.shape[1])
        if state is not None:
            mask_NI = _redrawn(x_NI.detach().to(A_RI.dtype), ctx.dropout, state)
        wide_NO = gy_NO.to(A_RI.dtype)
        if (
            torch.is_grad_enabled()
        ):  # a gradient of this gradient is wanted, which must find its way through h
            h_NR = _seen(x_NI, mask_NI, A_RI.dtype) @ A_RI.T * (1 if mask_NI is None else 1 / ctx.kept)
        gx = gA_RI = gB_OR = None
        gh_NR = (wide_NO @ B_OR) * (ctx.scaling / ctx.kept)  # what dropout keeps is scaled up
        if ctx.needs_input_grad[0]:
            gx_NI = gy_NO @ W_OI
            if mask_NI is None and gx_NI.dtype == gh_NR.dtype:
                gx_NI.addmm_(gh_NR, A_RI)
            else:
                update_NI = gh_NR @ A_RI
                gx_NI = gx_NI + (update_NI if mask_NI is None else update_NI.mul_(mask_NI))
            gx = gx_NI.to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[3]:
            gA_RI = gh_NR.T @ _seen(x_NI, mask_NI, A_RI.dtype)
        if ctx.needs_input_grad[4]:
            gB_OR = (wide_NO.T @ h_NR) * ctx.scaling
        return gx, None, None, gA_RI, gB_OR, None, None, None


def _dropped(x_NI: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """What dropout leaves of x, scaled up, and its mask; which number falls where depends on nothing but the shape."""
    x_NI = x_NI.contiguous()
    if x_NI.data_ptr() % 16:  # CUDA's kernel deals numbers otherwise to what it cannot read four at a time
        x_NI = x_NI.clone()
    return torch.native_dropout(x_NI, dropout, True)


def _state(x: Tensor) -> Tensor | None:
    """The state from which dropout's mask can be drawn again; None where it is better kept itself."""
    generator = _generator(x.device)
    state = None if generator is None else generator.get_state()
    return state if state is not None and state.nbytes < x.numel() else None


def _redrawn(x_NI: Tensor, dropout: float, state: Tensor) -> Tensor:
    """The mask that dropout drew when its generator had this state; the generator is left as it is now."""
    generator = _generator(x_NI.device)
    assert generator is not None  # the state is one of its
    now = generator.get_state()
    generator.set_state(state)
    try:
        return _dropped(x_NI, dropout)[1]
    finally:
        generator.set_state(now)


def _generator(device: torch.device) -> torch.Generator | None:
    """What dropout draws from on a device, where its state can be taken and given back."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        return torch.cuda.default_generators[device.index]
    return None


def _seen(x_NI: Tensor, mask_NI: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the update saw of x, not scaled up."""
    return x_NI.to(dtype) if mask_NI is None else x_NI.to(dtype) * mask_NI
