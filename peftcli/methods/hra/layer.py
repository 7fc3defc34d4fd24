"""HRA on a layer: a product of r Householder reflections, H = I − 2 u uᵀ with u of length one.

The product is I − U T Uᵀ with a small triangular T (r, r), so it costs what LoRA costs, and no matrix of size I × I is
ever made. Shapes: hra_u (I, r), a direction in each column.

Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation",
2024, arXiv:2405.17484.
Joffrain et al., "Accumulating Householder transformations, revisited", 2006, doi:10.1145/1141885.1141886.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from peftcli.adapters.rotation import RotatedConv2d, RotatedLinear, RotationLayer, exactly, precise, width
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.hra.config import HRAConfig


class Reflections(NamedTuple):
    """The transpose of I − U K: the last of the reflections comes first, as inputs meet them."""

    U_IR: torch.Tensor
    K_RI: torch.Tensor

    def __call__(self, rows: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        """By way of r numbers a row."""
        dtype = torch.promote_types(rows.dtype, self.U_IR.dtype)
        rows, U_IR, K_RI = rows.to(dtype), self.U_IR.to(dtype), self.K_RI.to(dtype)
        return rows - (rows @ U_IR @ K_RI if transposed else rows @ K_RI.mT @ U_IR.mT)


class HRALayer(RotationLayer):
    """A layer with HRA adapters on it."""

    adapter_layer_names = ("hra_u",)
    other_param_names = ("hra_r", "hra_apply_GS")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.hra_u = nn.ParameterDict()
        self.hra_r: dict[str, int] = {}
        self.hra_apply_GS: dict[str, bool] = {}  # PEFT's name

    def add(self, name: str, config: HRAConfig, *, autocast: bool) -> None:
        """Makes a new adapter: pairs of reflections that undo one another, or any reflections."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.hra_r[name], self.hra_apply_GS[name] = config.r, config.apply_GS
        repeats = 2 if starts_in_pairs(config) else 1
        u_IR = torch.empty(width(base), config.r // repeats, dtype=dtype, device=device)
        nn.init.kaiming_uniform_(u_IR, a=math.sqrt(5))
        self.hra_u[name] = nn.Parameter(u_IR.repeat_interleave(repeats, dim=1))

    def rotation(self, name: str, *, dropout: bool) -> Reflections:  # noqa: ARG002  (HRA has no dropout)
        """Of the reflections."""
        weight = self.hra_u[name]
        with exactly(weight):
            if self.hra_apply_GS[name]:
                Q_IR = torch.linalg.qr(precise(weight)).Q
                return Reflections(Q_IR, 2 * Q_IR.mT)
            U_IR = nn.functional.normalize(precise(weight), dim=0)
            inverse_RR = (U_IR.mT @ U_IR).triu(1) + torch.eye(U_IR.shape[1]).to(U_IR) / 2
            return Reflections(U_IR, torch.linalg.solve_triangular(inverse_RR, U_IR.mT, upper=True))

    def __repr__(self) -> str:
        return f"hra.{super().__repr__()}"


class Linear(HRALayer, RotatedLinear):
    """HRA on nn.Linear, or on the Conv1D of Transformers."""


class Conv2d(HRALayer, RotatedConv2d):
    """HRA on nn.Conv2d."""


def starts_in_pairs(config: HRAConfig) -> bool:
    """Whether a new adapter does nothing; equal directions cannot be made orthogonal, and an odd one has no partner."""
    return config.init_weights and not config.apply_GS and config.r % 2 == 0
