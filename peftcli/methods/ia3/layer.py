"""(IA)³ on a layer: a trained scale for every output, or in feed-forward layers for every input.

A scale on the outputs also scales the bias. Shapes: O outputs, I inputs; a scale is (O, 1) or (1, I) on linear layers
and (1, O, 1…) or (1, I, 1…) on convolutions, as in PEFT's files.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022,
arXiv:2205.05638.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.weights import HALF, adapter_dtype, base_weight, weight_of


class IA3Layer(AdapterLayer):
    """A layer with (IA)³ adapters on it; `is_feedforward` says that inputs are scaled."""

    adapter_layer_names = ("ia3_l",)

    def __init__(self, base_layer: nn.Module, *, is_feedforward: bool) -> None:
        super().__init__(base_layer)
        self.is_feedforward = is_feedforward
        self.ia3_l = nn.ParameterDict()
        self.in_features, self.out_features = self.sizes()

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of the base layer."""

    @abstractmethod
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of an adapter's scale."""

    @abstractmethod
    def along(self, scale: torch.Tensor) -> torch.Tensor:
        """A scale, shaped to multiply the layer's input or output."""

    @abstractmethod
    def across(self, scale: torch.Tensor) -> torch.Tensor:
        """A scale, shaped to multiply the base layer's weight."""

    def add(self, name: str, *, ones: bool, autocast: bool) -> None:
        """Makes a new adapter: ones, or random numbers."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        make = torch.ones if ones else torch.randn
        self.ia3_l[name] = nn.Parameter(make(self.scale_shape(), dtype=dtype, device=device))

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, scaled, in the dtype that it has without adapters."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        names = [name for name in self._active_adapter if name in self.ia3_l]
        if self._disable_adapters or self.merged_adapters or not names:
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        scale = self.along(self._product(names))
        if self.is_feedforward:
            scaled = (x.to(torch.promote_types(x.dtype, scale.dtype)) * scale).to(x.dtype)
            result: torch.Tensor = self.base_layer(scaled, *args, **kwargs)
            return result
        result = self.base_layer(x, *args, **kwargs)
        assert isinstance(result, torch.Tensor)
        wide = torch.promote_types(result.dtype, scale.dtype)
        scaled_result: torch.Tensor = (result.to(wide) * scale).to(result.dtype)
        return scaled_result

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight, scaled; and the bias, where outputs are."""
        base = self.get_base_layer()
        weight, scale = base_weight(base), self._product(names)
        wide = torch.float32 if weight.dtype in HALF else weight.dtype
        merged = {"weight": weight.to(wide) * self.across(scale.detach().to(wide))}
        bias: Any = getattr(base, "bias", None)
        if bias is not None and not self.is_feedforward:
            merged["bias"] = bias.detach().to(wide) * scale.detach().flatten().to(wide)
        return merged

    def _product(self, names: Sequence[str]) -> torch.Tensor:
        scale: torch.Tensor = self.ia3_l[names[0]]
        for name in names[1:]:
            scale = scale * self.ia3_l[name]
        return scale

    def __repr__(self) -> str:
        return f"ia3.{super().__repr__()}"


class Linear(IA3Layer):
    """(IA)³ on nn.Linear, or on the Conv1D of Transformers, which keeps its weight as (inputs, outputs)."""

    def sizes(self) -> tuple[int, int]:
        """Of either layer."""
        base: Any = self.get_base_layer()
        if isinstance(base, Conv1D):
            return base.weight.shape[0], base.weight.shape[1]
        return base.in_features, base.out_features

    def scale_shape(self) -> tuple[int, ...]:
        """(1, I) or (O, 1)."""
        return (1, self.in_features) if self.is_feedforward else (self.out_features, 1)

    def along(self, scale: torch.Tensor) -> torch.Tensor:
        """Features are the last dimension."""
        return scale.flatten()

    def across(self, scale: torch.Tensor) -> torch.Tensor:
        """The weight is (O, I), or transposed."""
        return scale.T if isinstance(self.get_base_layer(), Conv1D) else scale


class ConvNd(IA3Layer):
    """(IA)³ on nn.Conv2d and nn.Conv3d."""

    def sizes(self) -> tuple[int, int]:
        """Channels."""
        base: Any = self.get_base_layer()
        return base.in_channels, base.out_channels

    def scale_shape(self) -> tuple[int, ...]:
        """(1, channels, 1…)."""
        channels = self.in_features if self.is_feedforward else self.out_features
        return (1, channels, *[1] * (weight_of(self.get_base_layer()).dim() - 2))

    def along(self, scale: torch.Tensor) -> torch.Tensor:
        """Channels are the second dimension."""
        return scale

    def across(self, scale: torch.Tensor) -> torch.Tensor:
        """The kernel is (O, I of a group, …): a group of outputs sees its own share of the inputs."""
        if not self.is_feedforward:
            return scale.transpose(0, 1)
        base: Any = self.get_base_layer()
        kernel = scale.shape[2:]
        per_group = scale.reshape(base.groups, 1, -1, *kernel)
        outputs = self.out_features // base.groups
        return per_group.expand(-1, outputs, *[-1] * (1 + len(kernel))).flatten(0, 1)
