"""The sum of token losses, without a float32 copy of all logits.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peftcli.data.tokens import IGNORED


class _SummedTokenLoss(torch.autograd.Function):
    """Computes the gradient along with the loss, chunk by chunk: nothing else is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, chunk: int) -> Tensor:
        tokens, vocabulary = logits.shape
        precise = torch.promote_types(logits.dtype, torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if needs_gradient else None
        total = logits.new_zeros((), dtype=precise)
        step = max(1, chunk // vocabulary)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            wanted = targets[part].clamp(min=0).unsqueeze(1)
            ignored = (targets[part] == IGNORED).unsqueeze(1)
            log_p = F.log_softmax(logits[part].to(precise), dim=1)
            losses = -(1 - smoothing) * log_p.gather(1, wanted)
            if smoothing:
                losses -= smoothing * log_p.mean(1, keepdim=True)
            total += losses.masked_fill_(ignored, 0).sum()
            if gradient is not None:
                # The slope of each loss is p minus the smoothed target distribution.
                less = torch.full_like(wanted, -(1 - smoothing), dtype=precise)
                slope = log_p.exp_().scatter_add_(1, wanted, less)
                if smoothing:
                    slope -= smoothing / vocabulary
                gradient[part] = slope.masked_fill_(ignored, 0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None


def summed_token_loss(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, chunk: int = 1 << 24
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
    apply: Any = _SummedTokenLoss.apply  # torch gives it no types
    total: Tensor = apply(logits, targets, label_smoothing, chunk)
    return total
