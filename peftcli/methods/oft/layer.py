"""OFT on a layer: R is made of blocks, each a rotation by Cayley's formula of a skew-symmetric matrix.

What is trained is the part of those matrices above their diagonals, (D, B(B − 1)/2) for D blocks of size B. An
embedding's outputs are rotated, since it has no inputs.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2023, arXiv:2306.07280.
Qiu et al., "Orthogonal Finetuning Made Scalable", 2025, arXiv:2506.19847: rotated inputs, a series for the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from peftcli.adapters.rotation import (
    BlockDropout,
    Blocks,
    RotatedConv2d,
    RotatedLinear,
    RotationLayer,
    cayley,
    exactly,
    precise,
    width,
)
from peftcli.adapters.weights import adapter_dtype, base_weight, weight_of
from peftcli.methods.oft.config import OFTConfig


class OFTRotation(nn.Module):
    """The trained weights of one adapter on one layer, and the rotations that they stand for."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(
        self, blocks: int, block_size: int, config: OFTConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.limit = config.eps / math.sqrt(blocks) if config.coft else None
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None
        rows, columns = torch.triu_indices(block_size, block_size, 1, device=device)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        make = torch.zeros if config.init_weights else torch.randn
        self.weight = nn.Parameter(0.1 * make(blocks, len(rows), device=device, dtype=dtype))

    def forward(self) -> torch.Tensor:
        """The rotations: (D, B, B)."""
        with exactly(self.weight):
            above = precise(self.weight)
            if self.limit is not None:
                # The gradient is that of the trained weights, as if they had been projected before.
                above = above + (self._projected(above) - above).detach()
            half_DBB = above.new_zeros(len(above), self.block_size, self.block_size)
            half_DBB[:, self.rows, self.columns] = above
            skew_DBB = half_DBB - half_DBB.mT
            return cayley(skew_DBB) if self.terms is None else neumann(skew_DBB, self.terms)

    @torch.no_grad()
    def project(self) -> None:
        """Brings the trained weights back to where constrained OFT allows them to be."""
        if self.limit is not None:
            self.weight.copy_(self._projected(precise(self.weight)))

    def _projected(self, above: torch.Tensor) -> torch.Tensor:
        # A skew-symmetric matrix holds each of these numbers twice.
        norms = math.sqrt(2) * above.detach().norm(dim=1, keepdim=True)
        assert self.limit is not None
        near: torch.Tensor = above * (self.limit / norms).clamp(max=1)
        return near


def neumann(skew_DBB: torch.Tensor, terms: int) -> torch.Tensor:
    """Cayley's formula with a series in place of the inverse: I + 2S + … + 2Sᵏ⁻¹ + Sᵏ for k + 1 terms.

    As in PEFT, two terms are I + 2S, and three terms are four.
    """
    eye = torch.eye(skew_DBB.shape[-1], dtype=skew_DBB.dtype, device=skew_DBB.device)
    if terms == 2:
        return eye + 2 * skew_DBB
    series_DBB = 2 * eye + skew_DBB
    for _ in range(max(terms, 4) - 3):
        series_DBB = 2 * eye + skew_DBB @ series_DBB
    return eye + skew_DBB @ series_DBB


class OFTLayer(RotationLayer):
    """A layer with OFT adapters on it."""

    adapter_layer_names = ("oft_R", "oft_embedding_R")
    other_param_names = ("r", "oft_block_size", "oft_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.oft_R = nn.ModuleDict()
        self.oft_embedding_R = nn.ModuleDict()
        self.oft_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.oft_block_size: dict[str, int] = {}

    @property
    def rotations(self) -> nn.ModuleDict:
        """The adapters' rotations by name."""
        return self.oft_R

    def add(self, name: str, config: OFTConfig, *, autocast: bool) -> None:
        """Makes a new adapter."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.r[name], self.oft_block_size[name] = blocks_of(width(base), config)
        self.oft_dropout[name] = BlockDropout(config.module_dropout, self.r[name])
        blocks = 1 if config.block_share else self.r[name]
        self.rotations[name] = OFTRotation(blocks, self.oft_block_size[name], config, device, dtype)

    def rotation(self, name: str, *, dropout: bool) -> Blocks:
        """Of the blocks, some left out in training."""
        R_DBB = self.rotations[name]()
        return Blocks(self.oft_dropout[name](R_DBB) if dropout else R_DBB)

    def __repr__(self) -> str:
        return f"oft.{super().__repr__()}"


class Linear(OFTLayer, RotatedLinear):
    """OFT on nn.Linear, or on the Conv1D of Transformers."""


class Conv2d(OFTLayer, RotatedConv2d):
    """OFT on nn.Conv2d: the inputs of a block are of neighbouring channels and places of the kernel."""


class Embedding(OFTLayer):
    """OFT on nn.Embedding: its outputs are rotated."""

    @property
    def rotations(self) -> nn.ModuleDict:
        """PEFT has them under another name."""
        return self.oft_embedding_R

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The embeddings, rotated."""
        names = self.acting()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        return self._rotated(result, names, dropout=True).to(result.dtype)

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The table, its rows rotated."""
        table = precise(base_weight(self.get_base_layer()))
        return {"weight": self._rotated(table, names, dropout=False)}

    def _rotated(self, rows: torch.Tensor, names: Sequence[str], *, dropout: bool) -> torch.Tensor:
        for name in names:
            rows = self.rotation(name, dropout=dropout)(rows)
        return rows


def blocks_of(inputs: int, config: OFTConfig) -> tuple[int, int]:
    """How many blocks a layer has, and their size: what the config says, or the nearest that divides its inputs."""
    if config.r:
        r = _nearest_divisor(inputs, config.r)
        return r, inputs // r
    size = _nearest_divisor(inputs, config.oft_block_size)
    return inputs // size, size


def _nearest_divisor(number: int, wanted: int) -> int:
    """Of two equally near, the smaller; as PEFT chooses."""
    if number % wanted == 0:
        return wanted
    divisors = (each for each in range(1, number + 1) if number % each == 0)
    return min(divisors, key=lambda each: abs(each - wanted))
