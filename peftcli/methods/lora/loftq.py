"""LoftQ: the base is rounded to few bits, and A and B start with what the rounding lost.

Rounding is bitsandbytes', number for number (its NF4 and its row-wise int8), but needs neither it nor a GPU. So the
adapter fits a base that bitsandbytes has quantized: with `loftq_iter: 1` the published one, loaded in as many bits.

Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", 2023, arXiv:2310.08659.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.adapters.remembered import remembered
from peftcli.adapters.weights import HALF, base_weight, is_quantized
from peftcli.methods.lora.initial import Kaiming, Start

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer

# Numbers that share a scale.
_BLOCK = 64


class Loftq(Start):
    """The base weight becomes its rounding Q, with W ≈ Q + scaling · B A."""

    changes_base = True
    linear_only = True
    silent = False
    fits_quantized = True

    def __init__(self, bits: int, turns: int) -> None:
        self.bits, self.turns = bits, turns

    def start(self, layer: LoraLayer, name: str) -> None:
        """The base layer gets a new parameter; a module that shared the old one keeps it."""
        base = layer.get_base_layer()
        if is_quantized(base):  # an adapter from a file, on the base that it was made for
            Kaiming().start(layer, name)
            return
        weight = base_weight(base)
        if weight.is_meta:
            return
        W_OI = layer.matrix(weight.float() if weight.dtype in HALF else weight)
        Q_OI, A_RI, B_OR = approximated(W_OI, layer.r[name], self.bits, self.turns)
        put(layer, name, A_RI, B_OR)
        rounded = layer.unmatrix(Q_OI).to(weight.dtype).contiguous()
        base.weight = nn.Parameter(rounded, requires_grad=False)


def put(layer: LoraLayer, name: str, A_RI: torch.Tensor, B_OR: torch.Tensor) -> None:
    """Gives an adapter these factors; PEFT leaves the scaling on top, with which they would not fit."""
    root = layer.scaling[name] ** 0.5
    for factor, values in zip(layer.factors(name), (A_RI, B_OR), strict=True):
        factor.copy_(values / root)


def approximated(
    W_OI: torch.Tensor, r: int, bits: int, turns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q, A and B with W ≈ Q + B A: in turns Q rounds W - B A, and B A fits W - Q."""
    Q_OI = rounded(W_OI, bits)
    A_RI, B_OR = fitted(W_OI - Q_OI, r)
    for _ in range(turns - 1):
        Q_OI = rounded(W_OI - B_OR @ A_RI, bits)
        A_RI, B_OR = fitted(W_OI - Q_OI, r)
    return Q_OI, A_RI, B_OR


def fitted(W_OI: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The A and B of this rank that are nearest to a matrix."""
    U_OK, S_K, V_KI = torch.linalg.svd(W_OI, full_matrices=False)
    root_R = S_K[:r].sqrt()
    A_RI, B_OR = root_R[:, None] * V_KI[:r], U_OK[:, :r] * root_R
    missing = r - len(root_R)
    return F.pad(A_RI, (0, 0, 0, missing)), F.pad(B_OR, (0, missing))


def rounded(W_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """What is left of a matrix that is stored in so many bits."""
    return (_nf4 if bits == 4 else _int8)(W_OI.float()).to(W_OI.dtype)


def _nf4(W_OI: torch.Tensor) -> torch.Tensor:
    """Each number the nearest of 16 shares of the largest in its block (QLoRA's NormalFloat)."""
    shares = _normal_float().to(W_OI.device)
    flat = W_OI.flatten()
    blocks = F.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    middles = (shares[1:] + shares[:-1]) / 2
    places = torch.bucketize(blocks / largest.clamp(min=torch.finfo(torch.float32).tiny), middles)
    return (shares[places] * largest).flatten()[: len(flat)].view(W_OI.shape)


@remembered(1)
def _normal_float() -> torch.Tensor:
    """Quantiles of the normal distribution, 8 at or above zero and 8 below, the outermost at ±1.

    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv:2305.14314, section 3.
    """
    outermost = 0.9677083
    above, below = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, count).double())[:-1] for count in (9, 8)
    )
    values = torch.cat([-below, torch.zeros(1), above.flip(0)]).float()
    return values / values.max()


def _int8(W_OI: torch.Tensor) -> torch.Tensor:
    """Each number the nearest 127th of the largest in its row; bitsandbytes looks at them in half precision."""
    half_OI = W_OI.half().float()
    largest_O1 = half_OI.abs().amax(1, keepdim=True)
    places_OI = (half_OI * (127 / largest_O1.clamp(min=torch.finfo(torch.float16).tiny))).round()
    return places_OI * largest_O1 * 7.874015718698502e-3
