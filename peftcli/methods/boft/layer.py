"""BOFT on a layer: R is a product of sparse rotations ("butterflies"), and every output has a trained scale.

Each factor rotates blocks of inputs, as OFT does, after a shuffle that brings inputs of ever more distant blocks
together. The shuffles are transposed views, and the factors are applied one by one, so that nothing of size I × I is
ever made. Shapes: boft_R (N, D, B, B) for N factors of D blocks of size B, of which the skew-symmetric part counts;
boft_s (O, 1) on linear layers and (1, O) on convolutions, as in PEFT's files.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", 2023, arXiv:2311.06243.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.boft.config import BOFTConfig


class Butterfly(NamedTuple):
    """The product of some block rotations, the first of them nearest to the weight."""

    R_NDBB: torch.Tensor

    def __call__(self, rows: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        """Factor by factor: shuffled, rotated in blocks, and put back."""
        levels = list(enumerate(self.R_NDBB))
        for level, R_DBB in levels if transposed else reversed(levels):
            apart, half = 2**level, R_DBB.shape[-1] // 2
            if level:
                rows = _shuffled(rows, 2, apart, half)
            rows = Blocks(R_DBB)(rows, transposed=transposed)
            if level:
                rows = _shuffled(rows, apart, 2, half)
        return rows


def _shuffled(rows: torch.Tensor, high: int, low: int, half: int) -> torch.Tensor:
    """Half blocks in another order: those that stood `low` apart become neighbours."""
    groups = rows.shape[-1] // (high * low * half)
    return rows.reshape(*rows.shape[:-1], groups, high, low, half).transpose(-3, -2).reshape(rows.shape)


class FactorDropout(BlockDropout):
    """In training, blocks of one of the factors are the identity."""

    def forward(self, R_NDBB: torch.Tensor) -> torch.Tensor:
        """The factors, some blocks of one of them replaced."""
        if not self.training or self.p == 0:
            return R_NDBB
        numbers = torch.arange(len(R_NDBB), device=R_NDBB.device)
        chosen = numbers == torch.randint(len(R_NDBB), (), device=R_NDBB.device)
        return torch.where(chosen[:, None, None, None], super().forward(R_NDBB), R_NDBB)


class BOFTLayer(RotationLayer):
    """A layer with BOFT adapters on it."""

    adapter_layer_names = ("boft_R", "boft_s")
    other_param_names = ("boft_block_size", "boft_block_num", "boft_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.boft_R = nn.ParameterDict()
        self.boft_s = nn.ParameterDict()
        self.boft_dropout = nn.ModuleDict()
        self.boft_block_size: dict[str, int] = {}
        self.boft_block_num: dict[str, int] = {}

    def scale_shape(self) -> tuple[int, int]:
        """The shape of an adapter's scales."""
        return self.out_features, 1

    def add(self, name: str, config: BOFTConfig, *, autocast: bool) -> None:
        """Makes a new adapter."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        blocks, size = blocks_of(width(base), config)
        self.boft_block_num[name], self.boft_block_size[name] = blocks, size
        self.boft_dropout[name] = FactorDropout(config.boft_dropout, blocks)
        rotations = torch.zeros(
            config.boft_n_butterfly_factor, blocks, size, size, dtype=dtype, device=device
        )
        scales = torch.ones(self.scale_shape(), dtype=dtype, device=device)
        if not config.init_weights:
            nn.init.normal_(rotations, std=0.1)
            nn.init.normal_(scales, mean=1.0, std=0.1)
        self.boft_R[name], self.boft_s[name] = nn.Parameter(rotations), nn.Parameter(scales)

    def rotation(self, name: str, *, dropout: bool) -> Butterfly:
        """Of the factors; training leaves out blocks of one of them."""
        weight = self.boft_R[name]
        with exactly(weight):
            half_NDBB = precise(weight) / 2
            R_NDBB = cayley(half_NDBB - half_NDBB.mT)
        return Butterfly(self.boft_dropout[name](R_NDBB) if dropout else R_NDBB)

    def output_scale(self, names: Sequence[str]) -> torch.Tensor | None:
        """The product of the adapters' scales."""
        scale: torch.Tensor = self.boft_s[names[0]].flatten()
        for name in names[1:]:
            scale = scale * self.boft_s[name].flatten()
        return scale

    def __repr__(self) -> str:
        return f"boft.{super().__repr__()}"


class Linear(BOFTLayer, RotatedLinear):
    """BOFT on nn.Linear, or on the Conv1D of Transformers."""


class Conv2d(BOFTLayer, RotatedConv2d):
    """BOFT on nn.Conv2d."""

    def scale_shape(self) -> tuple[int, int]:
        """The shape of an adapter's scales."""
        return 1, self.out_features


def blocks_of(inputs: int, config: BOFTConfig) -> tuple[int, int]:
    """How many blocks a layer has, and their size, both cut down where they do not divide its inputs."""
    if config.boft_block_num:
        return config.boft_block_num, inputs // config.boft_block_num
    return inputs // config.boft_block_size, config.boft_block_size
