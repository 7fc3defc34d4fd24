"""The sum of token losses, without a float32 copy of all logits, or without the logits.

Shapes: N tokens, V vocabulary, H numbers of a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from peftcli.data.tokens import IGNORED

# So many numbers of logits are in float32 at a time: 64 MiB of them. Fewer rows than this at a time would make a large
# vocabulary's products slow.
_CHUNK, _ROWS = 1 << 24, 256


class Head(NamedTuple):
    """A frozen linear layer that makes logits: (V, H) and (V,)."""

    weight: Tensor
    bias: Tensor | None


def summed_token_loss(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, chunk: int = _CHUNK
) -> Tensor:
    """The sum of cross entropies over the targets that are not IGNORED, in float32 or better.

    With `label_smoothing` ε each loss is (1 - ε) · -log p(target) + ε · the mean of -log p over the
    vocabulary, as Transformers' LabelSmoother has it (Szegedy et al., "Rethinking the Inception
    Architecture", 2015, arXiv:1512.00567).

    Args:
        logits: (N, V), of any float type.
        targets: (N,) token ids, or IGNORED.
        label_smoothing: ε, from 0 to below 1.
        chunk: How many logits are in float32 at a time: by default 64 MiB of them, whatever the vocabulary.
    """
    apply: Any = _SummedLoss.apply  # torch gives it no types
    total: Tensor = apply(logits, None, None, targets, label_smoothing, max(1, chunk // logits.shape[1]))
    return total


def summed_head_loss(
    hidden: Tensor, head: Head, targets: Tensor, *, label_smoothing: float = 0.0, rows: int | None = None
) -> Tensor:
    """The same of `hidden` times the head, some rows at a time: all logits are never there at once.

    PyTorch's own `linear_cross_entropy` does so, too, but smooths no labels then.

    Args:
        hidden: (N, H), what the head is given.
        head: takes no gradient.
        targets: as above.
        label_smoothing: as above.
        rows: how many at a time; default: those of 64 MiB of logits, and 256 at least.
    """
    apply: Any = _SummedLoss.apply
    rows = rows or max(_ROWS, _CHUNK // len(head.weight))
    total: Tensor = apply(hidden, *head, targets, label_smoothing, rows)
    return total


class _SummedLoss(torch.autograd.Function):
    """Of logits, or of what a head makes them of.

    Computes the gradient along with the loss, some rows at a time: nothing else is kept for the backward.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (autograd functions take tensors one by one)
        ctx: Any,
        given: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        rows: int,
    ) -> Tensor:
        gradient = torch.empty_like(given) if ctx.needs_input_grad[0] else None
        total = given.new_zeros((), dtype=torch.promote_types(given.dtype, torch.float32))
        for start in range(0, len(given), rows):
            part = slice(start, start + rows)
            # A copy, which may be changed.
            seen = given[part].masked_fill(_ignored(targets[part]), 0)
            logits = seen if weight is None else F.linear(seen, weight, bias)
            loss, slope = _loss(logits.to(total.dtype), targets[part], smoothing)
            total += loss
            if gradient is not None:
                gradient[part] = slope if weight is None else slope.to(logits.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None, None, None


def _ignored(targets: Tensor) -> Tensor:
    return (targets == IGNORED).unsqueeze(1)


def _loss(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum, and its gradient, (N, V), in the place of the logits.

    These are in float32 or better, and finite where targets are ignored.
    """
    wanted, ignored = targets.clamp(min=0).unsqueeze(1), _ignored(targets)
    logits -= logits.amax(1, keepdim=True)
    gain = (1 - smoothing) * logits.gather(1, wanted)
    if smoothing:
        gain += smoothing * logits.mean(1, keepdim=True)
    p = logits.exp_()
    total = p.sum(1, keepdim=True)
    losses = (total.log() - gain).masked_fill_(ignored, 0)
    # The slope of each loss is p minus the smoothed target distribution.
    trained = (~ignored).to(p.dtype)
    slope = p.mul_(trained / total).scatter_add_(1, wanted, trained * (smoothing - 1))
    if smoothing:
        slope -= trained * (smoothing / logits.shape[1])
    return losses.sum(), slope
