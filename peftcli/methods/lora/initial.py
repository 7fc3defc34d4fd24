"""How a new adapter's A and B start. Some starts take what they hold out of the base weight, which then differs.

With those (PiSSA, OLoRA) the adapter's file holds A and B as they are, and loading it takes the same part out of the
base again, as PEFT does. It must be the same part: the random numbers that PiSSA's fast decomposition draws are
therefore always the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftcli.adapters.weights import HALF, base_weight, weight_of

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer


class Start(ABC):
    """One way to fill A and B."""

    changes_base = False
    # Only layers whose weight is one matrix, and is read here.
    linear_only = False
    # The adapter does nothing before it is trained.
    silent = True

    @abstractmethod
    def start(self, layer: LoraLayer, name: str) -> None:
        """Fills a new adapter's A and B."""

    def problem(self, r: int) -> str:  # noqa: ARG002  (most starts take any rank)
        """Why an adapter of this rank cannot start so, or nothing."""
        return ""


class Kaiming(Start):
    """A as nn.Linear starts, B zero; on embeddings A zero and B normal. The paper's code does this."""

    def start(self, layer: LoraLayer, name: str) -> None:
        """One of both factors is zero."""
        if name in layer.lora_embedding_A:
            nn.init.zeros_(layer.lora_embedding_A[name])
            nn.init.normal_(layer.lora_embedding_B[name])
            return
        self.fill(weight_of(layer.lora_A[name]))
        nn.init.zeros_(weight_of(layer.lora_B[name]))

    def fill(self, weight: torch.Tensor) -> None:
        """A's values."""
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


class Gaussian(Kaiming):
    """A normal with standard deviation 1/r, B zero."""

    def fill(self, weight: torch.Tensor) -> None:
        """A's first dimension is the rank."""
        nn.init.normal_(weight, std=1 / weight.shape[0])


class Random(Start):
    """A and B both random: the adapter acts at once. For tests."""

    silent = False

    def start(self, layer: LoraLayer, name: str) -> None:
        """As the layers that hold them start by themselves."""
        if name in layer.lora_embedding_A:
            nn.init.normal_(layer.lora_embedding_A[name])
            nn.init.normal_(layer.lora_embedding_B[name])
            return
        for factor in (layer.lora_A[name], layer.lora_B[name]):
            nn.init.kaiming_uniform_(weight_of(factor), a=math.sqrt(5))


class Orthogonal(Start):
    """A and B random with B A = 0: their rows and columns come from two halves of one orthogonal basis."""

    linear_only = True

    def problem(self, r: int) -> str:
        """Both halves are of one size."""
        return "" if r % 2 == 0 else f"orthogonal needs an even rank, not {r}"

    def start(self, layer: LoraLayer, name: str) -> None:
        """B A = 0, though neither is."""
        A_RI, B_OR = layer.factors(name)
        rank, half = A_RI.shape[0], A_RI.shape[0] // 2
        exact: Any = {"dtype": torch.promote_types(A_RI.dtype, torch.float32), "device": A_RI.device}
        basis_RR, _ = torch.linalg.qr(torch.randn(rank, rank, **exact))
        A_RI.copy_((torch.randn(A_RI.shape[1], half, **exact) @ basis_RR[0::2]).T / 10)
        B_OR.copy_((torch.randn(B_OR.shape[0], half, **exact) @ basis_RR[1::2]) / 10)


class FromBase(Start):
    """A and B take a part of the base weight, which keeps the rest: W = rest + scaling · B A."""

    changes_base = True
    linear_only = True

    @abstractmethod
    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A_RI and B_OR."""

    def start(self, layer: LoraLayer, name: str) -> None:
        """The base layer gets a new parameter; a module that shared the old one keeps it."""
        base = layer.get_base_layer()
        weight = base_weight(base)
        if weight.is_meta:
            return
        W_OI = layer.matrix(weight.float() if weight.dtype in HALF else weight)
        scaling = layer.scaling[name]
        A_RI, B_OR = self.parts(W_OI, layer.r[name], scaling)
        for factor, values in zip(layer.factors(name), (A_RI, B_OR), strict=True):
            factor.copy_(values)
        rest = layer.unmatrix(W_OI - scaling * (B_OR @ A_RI)).to(weight.dtype).contiguous()
        base.weight = nn.Parameter(rest, requires_grad=False)


class Pissa(FromBase):
    """The largest singular values and their vectors, shared equally between A and B.

    Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation", 2024, arXiv:2404.02948.
    """

    def __init__(self, iterations: int | None = None) -> None:
        self.iterations = iterations

    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Exactly, or (`iterations`) by subspace iteration, which is fast."""
        if self.iterations is None:
            U_OK, S_K, V_KI = torch.linalg.svd(W_OI, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[W_OI.device] if W_OI.is_cuda else []):
                torch.manual_seed(0)
                U_OK, S_K, V_IK = torch.svd_lowrank(W_OI, q=min(r, *W_OI.shape), niter=self.iterations)
            V_KI = V_IK.T
        root_R = (S_K[:r] / scaling).sqrt()
        return root_R[:, None] * V_KI[:r], U_OK[:, :r] * root_R

    def __repr__(self) -> str:
        return f"Pissa({self.iterations})"


class Olora(FromBase):
    """The first columns and rows of a QR decomposition.

    Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024, arXiv:2406.01775.
    """

    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """R's rows and Q's columns; PEFT's OLoRA leaves the scaling on top."""
        Q_OK, R_KI = torch.linalg.qr(W_OI)
        return R_KI[:r], Q_OK[:, :r]


STRATEGIES: dict[bool | str, Start] = {
    True: Kaiming(),
    False: Random(),
    "gaussian": Gaussian(),
    "orthogonal": Orthogonal(),
    "olora": Olora(),
    "pissa": Pissa(),
}


@cache
def _fast_pissa(iterations: int) -> Pissa:
    return Pissa(iterations)


def strategy_of(init_lora_weights: bool | str) -> Start:
    """The start that a config's `init_lora_weights` names; the config has checked it."""
    if isinstance(init_lora_weights, str) and init_lora_weights.startswith("pissa_niter_"):
        return _fast_pissa(int(init_lora_weights.rpartition("_")[2]))
    return STRATEGIES[init_lora_weights]
