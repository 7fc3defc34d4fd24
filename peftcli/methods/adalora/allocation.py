"""Which ranks are worth their place: AdaLoRA's budget, and how it is shared out among layers; and its penalty.

A rank of a layer is a row of A, an entry of E and a column of B. It matters as much as the loss would change without
it: the importance of a weight is |weight × gradient|, smoothed over steps, times how uncertain that is. R is the rank.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv:2303.10512.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from peftcli.methods.adalora.config import AdaLoraConfig
from peftcli.methods.adalora.layer import AdaLoraLayer


def budget(config: AdaLoraConfig, layers: int, step: int, last: int) -> int:
    """How many ranks all layers may have together at a step: down in a cubic curve, until step `last`."""
    start, end = config.init_r * layers, config.target_r * layers
    left = 1 - (step - config.tinit) / (last - config.tinit)
    return int((start - end) * left**3 + end) if step < last else end


@torch.no_grad()
def notice(layers: Sequence[AdaLoraLayer], name: str, config: AdaLoraConfig) -> None:
    """Takes the gradients that there are into the running means of importance and uncertainty."""
    weights: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    doubts: list[torch.Tensor] = []
    for layer in layers:
        factors = layer.factors(name)
        for table in (layer.sensitivity, layer.uncertainty):
            if name not in table:
                table[name] = [torch.zeros_like(factor) for factor in factors]
        weights += factors
        # A layer that took no part in the step had no influence on its loss.
        gradients += [torch.zeros_like(each) if each.grad is None else each.grad for each in factors]
        means += layer.sensitivity[name]
        doubts += layer.uncertainty[name]
    importance = torch._foreach_mul(weights, gradients)  # noqa: SLF001  (PyTorch's optimizers' own: one kernel for all)
    torch._foreach_abs_(importance)
    torch._foreach_lerp_(means, importance, 1 - config.beta1)
    surprise = torch._foreach_sub(importance, means)  # noqa: SLF001
    torch._foreach_abs_(surprise)
    torch._foreach_lerp_(doubts, surprise, 1 - config.beta2)


@torch.no_grad()
def allocate(layers: Sequence[AdaLoraLayer], name: str, ranks: int) -> None:
    """Lets the layers keep the `ranks` ranks that matter most, wherever they are, and sets the others' E to zero."""
    scores_R = [_scores(layer, name) for layer in layers]
    device = scores_R[0].device
    all_scores = torch.cat([scores.to(device) for scores in scores_R])
    kept = torch.ones_like(all_scores)
    kept[all_scores.argsort(stable=True)[: max(0, len(all_scores) - ranks)]] = 0
    shares = torch.split(kept, [len(scores) for scores in scores_R])
    for layer, share in zip(layers, shares, strict=True):
        layer.kept[name] = share[:, None].to(layer.lora_E[name])
    mask(layers, name)


@torch.no_grad()
def mask(layers: Sequence[AdaLoraLayer], name: str) -> None:
    """Sets E to zero for the ranks that are not kept: the optimizer's step moved it away."""
    masked = [layer for layer in layers if name in layer.kept]
    if masked:
        torch._foreach_mul_([layer.lora_E[name] for layer in masked], [layer.kept[name] for layer in masked])


def _scores(layer: AdaLoraLayer, name: str) -> torch.Tensor:
    """How much each rank of a layer matters: (R,)."""
    A_RI, B_OR, E_R1 = (
        mean * doubt for mean, doubt in zip(layer.sensitivity[name], layer.uncertainty[name], strict=True)
    )
    return E_R1.flatten() + A_RI.mean(1) + B_OR.mean(0)


def orthogonality(layers: Sequence[AdaLoraLayer], name: str) -> torch.Tensor:
    """How far from orthonormal the rows of A and the columns of B are: ‖M Mᵀ − I‖, the mean over all such matrices.

    Matrices of one shape are one operation; in the weights' own precision, which bfloat16's autocast would spoil.
    """
    alike: defaultdict[tuple[torch.Size, torch.device], list[torch.Tensor]] = defaultdict(list)
    for layer in layers:
        for rows in (layer.lora_A[name], layer.lora_B[name].T):
            alike[rows.shape, rows.device].append(rows)
    norms = []
    for (shape, device), matrices in alike.items():
        with torch.autocast(device.type, enabled=False):
            stacked = torch.stack(matrices)
            eye = torch.eye(shape[0], device=device, dtype=stacked.dtype)
            norms.append(torch.linalg.matrix_norm(stacked @ stacked.mT - eye))
    return torch.cat([norm.to(norms[0].device) for norm in norms]).mean()
