"""RandLoRA on a linear layer: W x becomes W x + scaling · Σ Bₙ Λₙ A Γₙ x over n random bases, or its transpose.

Shapes: N bases of rank R, as many as make the sum of full rank; S the smaller of a layer's sizes, L the larger.
randlora_lambda (R, N) and randlora_gamma (N, S) are trained. randlora_A (R, 1, S) and randlora_B (L, N, R) are random
and shared: as large as the largest layer needs, and cut to each one's size. A, which carries all that is trained, is
on the smaller side.

Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", 2025, arXiv:2502.00987.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.adapters.additive import FactoredLinear
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.randlora.config import RandLoraConfig


class Linear(FactoredLinear):
    """nn.Linear, or the Conv1D of Transformers, with RandLoRA adapters on it."""

    adapter_layer_names = ("randlora_lambda", "randlora_gamma")
    other_param_names = ("r", "scaling", "randlora_dropout")

    def __init__(self, base_layer: nn.Module, randlora_A: BufferDict, randlora_B: BufferDict) -> None:
        super().__init__(base_layer)
        self.randlora_lambda, self.randlora_gamma = nn.ParameterDict(), nn.ParameterDict()
        self.randlora_A, self.randlora_B = randlora_A, randlora_B
        self.randlora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}

    def add(self, name: str, config: RandLoraConfig, *, autocast: bool) -> None:
        """Makes a new adapter: lambda at zero, or at random."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.r[name], self.scaling[name] = config.r, config.randlora_alpha / config.r
        self.randlora_dropout[name] = (
            nn.Dropout(config.randlora_dropout) if config.randlora_dropout else nn.Identity()
        )
        small, large = sorted((self.in_features, self.out_features))
        bases = bases_of(small, config.r)
        start = 1 / (max(bases, small) if config.init_weights else large)
        make = torch.zeros if config.init_weights else torch.randn
        lambda_RN = make(config.r, bases, dtype=dtype, device=device)
        gamma_NS = torch.full((bases, small), start, dtype=dtype, device=device)
        self.randlora_lambda[name], self.randlora_gamma[name] = (
            nn.Parameter(lambda_RN),
            nn.Parameter(gamma_NS),
        )

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The bases, one under another, those on the smaller side scaled.

        The two sides count the bases' rows in different orders, so B's are not those that the formula pairs with A's.
        B is random, so nothing depends on it but that PEFT does the same.
        """
        lambda_RN, gamma_NS = self.randlora_lambda[name], self.randlora_gamma[name]
        small, large = sorted((self.in_features, self.out_features))
        A_R1S = self.randlora_A[name][..., :small].to(lambda_RN)
        B_LNR = self.randlora_B[name][:large, : lambda_RN.shape[1]].to(lambda_RN)
        trained = (lambda_RN * self.scaling[name], gamma_NS)
        scaled_RNS: torch.Tensor = ScaledBases.apply(A_R1S, *trained)  # type: ignore[no-untyped-call]  # torch's
        A, B = scaled_RNS.flatten(0, 1), B_LNR.flatten(1)
        return (A, B) if self.in_features == small else (B.T, A.T)

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """With dropout."""
        return super().update(name, self.randlora_dropout[name](x))

    def __repr__(self) -> str:
        return f"randlora.{super().__repr__()}"


class ScaledBases(torch.autograd.Function):
    """λ A γ for all bases at once, (R, N, S): as large as a weight, and autograd would keep another of that size."""

    @staticmethod
    def forward(
        ctx: Any, A_R1S: torch.Tensor, lambda_RN: torch.Tensor, gamma_NS: torch.Tensor
    ) -> torch.Tensor:
        """The product, keeping the factors."""
        ctx.save_for_backward(A_R1S, lambda_RN, gamma_NS)
        return lambda_RN[..., None] * A_R1S * gamma_NS

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Of lambda and gamma; A is not trained."""
        A_R1S, lambda_RN, gamma_NS = ctx.saved_tensors
        along_RNS = grads[0] * A_R1S
        return (
            None,
            torch.einsum("rns,ns->rn", along_RNS, gamma_NS),
            torch.einsum("rns,rn->ns", along_RNS, lambda_RN),
        )


def bases_of(smaller: int, r: int) -> int:
    """How many bases of rank r a full rank takes."""
    return -(-smaller // r)
