"""MiSS on a linear layer: W x becomes W x + D x, where D repeats one trained matrix.

Shapes of `miss_block`, and what D is:
    (R, O)        its transpose, side by side as often as R inputs go into I; the last one may be cut off. D x is then
                  the matrix times the sum of x's blocks, and D is never made.
    (R, M)        "mini": the same for M outputs, repeated for every M outputs.
    (O / R, R, R) "bat": W and I are cut into squares (R, R), and from each square S of W comes S B + B, with the
                  matrix B that its rows have. So what the adapter does depends on W, and on the adapters before it.

Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", 2024,
arXiv:2409.15371.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.additive import AdditiveLinear
from peftcli.adapters.weights import adapter_dtype, base_weight, weight_of
from peftcli.methods.miss.config import MissConfig


class MissLayer(AdditiveLinear):
    """nn.Linear, or the Conv1D of Transformers, with MiSS adapters on it."""

    adapter_layer_names = ("miss_block",)
    other_param_names = ("miss_r", "miss_mini_r", "miss_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.miss_r: dict[str, int] = {}
        self.miss_mini_r: dict[str, int] = {}
        self.miss_dropout = nn.ModuleDict()
        self.miss_block = nn.ParameterDict()

    def add(self, name: str, config: MissConfig, *, autocast: bool) -> None:
        """Makes a new adapter: zeros, or uniform random numbers after He."""
        base, r = self.get_base_layer(), config.r
        self.miss_r[name], self.miss_mini_r[name] = r, config.mini_r
        self.miss_dropout[name] = nn.Dropout(config.miss_dropout) if config.miss_dropout else nn.Identity()
        shapes = {"bat": (self.out_features // r, r, r), "mini": (r, config.mini_r)}
        shape = shapes.get(str(config.init_weights), (r, self.out_features))
        block = torch.zeros(
            shape, dtype=adapter_dtype(base, autocast=autocast), device=weight_of(base).device
        )
        if config.init_weights is False:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))
        self.miss_block[name] = nn.Parameter(block)

    def delta(self, name: str) -> torch.Tensor:
        """D on the base's own weight."""
        return self._delta(name, self._weight())

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight with these adapters in it, one after another as in `forward`."""
        weight_OI = self._with(names)
        return {"weight": weight_OI.T.contiguous() if self._is_transposed() else weight_OI}

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """D x, by way of R numbers where D does not depend on the weight."""
        block = self.miss_block[name]
        x = self.miss_dropout[name](x)
        dtype = torch.promote_types(x.dtype, block.dtype)
        if block.dim() == 3:
            earlier = self._active_adapter[: self._active_adapter.index(name)]
            D_OI = self._delta(name, self._with([each for each in earlier if self.has(each)]))
            return F.linear(x.to(dtype), D_OI.to(dtype))
        short = -x.shape[-1] % len(block)
        blocks = torch.unflatten(F.pad(x.to(dtype), (0, short)), -1, (-1, len(block)))
        outputs: torch.Tensor = blocks.sum(-2) @ block.to(dtype)
        return outputs.repeat(*[1] * (x.dim() - 1), self.out_features // block.shape[1])

    def _with(self, names: Sequence[str]) -> torch.Tensor:
        """The base layer's weight (O, I) with adapters in it."""
        weight_OI = self._weight()
        for name in names:
            weight_OI = weight_OI + self._delta(name, weight_OI)
        return weight_OI

    def _delta(self, name: str, weight_OI: torch.Tensor) -> torch.Tensor:
        """D on a weight, at least in float32."""
        block = self.miss_block[name]
        if block.dim() == 3:
            # What goes into the product is as large as the weight, so it is made again for the gradient.
            mixing: torch.Tensor = checkpoint(
                mixed, weight_OI, block, use_reentrant=False, preserve_rng_state=False
            )
            return mixing
        return repeated(block, weight_OI.shape)

    def _weight(self) -> torch.Tensor:
        weight = base_weight(self.get_base_layer())
        return weight.T if self._is_transposed() else weight

    def _is_transposed(self) -> bool:
        return isinstance(self.get_base_layer(), Conv1D)

    def __repr__(self) -> str:
        return f"miss.{super().__repr__()}"


def repeated(block_RM: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """D (O, I) as repetitions of one matrix, at least in float32."""
    outputs, inputs = shape
    r, rows = block_RM.shape
    wide = block_RM.to(torch.promote_types(block_RM.dtype, torch.float32))
    return wide.T.repeat(outputs // rows, -(-inputs // r))[:, :inputs]


def mixed(weight_OI: torch.Tensor, block_DRR: torch.Tensor) -> torch.Tensor:
    """D (O, I) as a mixture of the weight's own columns, block by block, at least in float32."""
    dtype = torch.promote_types(torch.promote_types(weight_OI.dtype, block_DRR.dtype), torch.float32)
    block_DRR = block_DRR.to(dtype)
    r = block_DRR.shape[-1]
    columns = weight_OI.shape[1] // r
    squares = weight_OI.to(dtype).reshape(len(block_DRR), r * columns, r) @ block_DRR
    return (squares.reshape(-1, r, columns, r) + block_DRR[:, :, None]).reshape(weight_OI.shape)
