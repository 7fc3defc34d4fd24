"""Layers whose inputs an adapter rotates: W x becomes W R x. OFT, BOFT and HRA differ only in how they say R.

One operation serves every kind of layer: rows times R, or times its transpose. A linear layer rotates its inputs (x R),
which costs no more than a thin matrix and leaves the weight alone, so it may be quantized. A convolution's inputs
overlap, so there the rows of the kernel are rotated (W Rᵀ); and that is also what merging does.

Suffixes: O outputs, I inputs (of a convolution: channels × kernel), D blocks, B a block's size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import LayerMethod, bare
from peftcli.adapters.weights import base_weight, weight_of


class Rotation(Protocol):
    """A square matrix R that rows are multiplied by."""

    def __call__(self, rows: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        """Rows (…, I) times R, or times its transpose; in the wider of the two dtypes."""


class Blocks(NamedTuple):
    """A rotation of each block of inputs by itself; one block that stands for all is (1, B, B)."""

    R_DBB: torch.Tensor

    def __call__(self, rows: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        """Block by block."""
        dtype = torch.promote_types(rows.dtype, self.R_DBB.dtype)
        R_DBB = (self.R_DBB.mT if transposed else self.R_DBB).to(dtype)
        size = R_DBB.shape[-1]
        blocks = rows.to(dtype).reshape(*rows.shape[:-1], rows.shape[-1] // size, size)
        if len(R_DBB) == 1:
            return (blocks @ R_DBB[0]).reshape(rows.shape)
        rotated: torch.Tensor = torch.einsum("...db,dbc->...dc", blocks, R_DBB)
        return rotated.reshape(rows.shape)


def cayley(skew_DBB: torch.Tensor) -> torch.Tensor:
    """Rotations from skew-symmetric matrices: (I + S)⁻¹ (I − S)."""
    eye = torch.eye(skew_DBB.shape[-1], dtype=skew_DBB.dtype, device=skew_DBB.device)
    rotations: torch.Tensor = torch.linalg.solve(eye + skew_DBB, eye - skew_DBB)
    return rotations


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """A trained tensor in a dtype that linear algebra takes."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def exactly(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """A context without autocast: rotations made in half precision would not be orthogonal."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class BlockDropout(nn.Module):
    """In training, each block is the identity with probability `p`, also where all share one rotation."""

    def __init__(self, p: float, blocks: int) -> None:
        super().__init__()
        self.p, self.blocks = p, blocks

    def forward(self, R_DBB: torch.Tensor) -> torch.Tensor:
        """The blocks, some of them replaced."""
        if not self.training or self.p == 0:
            return R_DBB
        dropped = torch.rand(self.blocks, 1, 1, device=R_DBB.device) < self.p
        eye = torch.eye(R_DBB.shape[-1], dtype=R_DBB.dtype, device=R_DBB.device)
        return torch.where(dropped, eye, R_DBB)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class RotationLayer(AdapterLayer):
    """A layer with adapters that rotate its inputs.

    Of several adapters the first is nearest to the weight, in `forward` as after merging.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = _features(self.get_base_layer())

    @abstractmethod
    def rotation(self, name: str, *, dropout: bool) -> Rotation:
        """An adapter's rotation; `dropout` says whether what training leaves out is left out."""

    def output_scale(self, names: Sequence[str]) -> torch.Tensor | None:  # noqa: ARG002  (most have none)
        """What adapters multiply the outputs by, apart from the bias: (O,), or nothing."""
        return None

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight, its rows rotated."""
        base = self.get_base_layer()
        rotated_OI = self.rotated_weight(precise(base_weight(base)), names, dropout=False)
        return {"weight": rotated_OI.contiguous()}

    def rotated_weight(self, weight: torch.Tensor, names: Sequence[str], *, dropout: bool) -> torch.Tensor:
        """A weight of the base layer's shape with adapters in it."""
        transposed = isinstance(self.get_base_layer(), Conv1D)
        rows = weight.T if transposed else weight.flatten(1)
        for name in names:
            rows = self.rotation(name, dropout=dropout)(rows, transposed=True)
        scale_O = self.output_scale(names)
        if scale_O is not None:
            rows = rows * scale_O[:, None]
        return rows.T if transposed else rows.reshape(weight.shape)

    def acting(self) -> list[str]:
        """The adapters that `forward` has to apply: none where they are off, or in the weight already."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if self._disable_adapters or self.merged_adapters:
            return []
        own = self.adapter_names()
        return [name for name in self._active_adapter if name in own]


class RotatedLinear(RotationLayer):
    """nn.Linear, or the Conv1D of Transformers: x R goes in."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output for rotated inputs."""
        names = self.acting()
        rotated = x
        for name in reversed(names):
            rotated = self.rotation(name, dropout=True)(rotated)
        result: torch.Tensor = self.base_layer(rotated.to(x.dtype), *args, **kwargs)
        scale_O = self.output_scale(names) if names else None
        if scale_O is None:
            return result
        scaled = result * scale_O
        if self.bias is not None:
            scaled = scaled + self.bias * (1 - scale_O)
        return scaled.to(result.dtype)


class RotatedConv2d(RotationLayer):
    """nn.Conv2d without groups: the kernel is rotated."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output with a rotated kernel."""
        names = self.acting()
        if not names:
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        base: Any = self.get_base_layer()
        kernel = self.rotated_weight(base_weight(base), names, dropout=True)
        # The one place where PyTorch keeps what a convolution does besides its weight: padding modes, dilation, …
        result: torch.Tensor = base._conv_forward(x, kernel.to(x.dtype), base.bias)  # noqa: SLF001
        return result


class RotationMethod(LayerMethod):
    """A method whose adapters rotate inputs."""

    def problem(self, site: Site, config: Any, model: nn.Module) -> str:
        """As every method's; and with groups a convolution's inputs are not one row."""
        base = bare(site.module)
        if message := super().problem(site, config, model):
            return message
        if isinstance(base, nn.Conv2d) and base.groups > 1:
            return f"{site.name} is a convolution with groups, which {config.peft_type} does not take"
        return ""


def width(base: nn.Module) -> int:
    """How many inputs of a layer are rotated together; of an embedding, which has none, its outputs."""
    if isinstance(base, nn.Embedding):
        return base.embedding_dim
    if isinstance(base, nn.Conv2d):
        return base.weight[0].numel()
    return _features(base)[0]


def _features(base: Any) -> tuple[int, int]:
    """Inputs and outputs, as PEFT counts them."""
    if isinstance(base, Conv1D):
        return weight_of(base).shape[0], weight_of(base).shape[1]
    if isinstance(base, nn.Conv2d):
        return base.in_channels, base.out_channels
    if isinstance(base, nn.Embedding):
        return base.embedding_dim, base.num_embeddings
    return base.in_features, base.out_features
