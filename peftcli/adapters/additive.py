"""Layers whose adapters add to the weight: W x becomes W x + D x. Methods differ in how they say D.

Where D is a product of two thin matrices, `forward` goes through them and never makes it.
Suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.weights import base_weight, weight_of


class AdditiveLayer(AdapterLayer):
    """A layer of any kind."""

    @abstractmethod
    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """D x, in the wider of the two dtypes."""

    @abstractmethod
    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """D in the shape of the base layer's weight, at least in float32."""

    def has(self, name: str) -> bool:
        """Whether the layer has this adapter."""
        return name in getattr(self, self.adapter_layer_names[0])

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight, and what these adapters add to it."""
        weight = base_weight(self.get_base_layer())
        for name in names:
            weight = weight + self.get_delta_weight(name)
        return {"weight": weight}

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, with what the active adapters add, in the base layer's dtype."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged_adapters:
            return result
        dtype = result.dtype
        for name in self._active_adapter:
            if self.has(name):
                result = result + self.update(name, x)
        return result.to(dtype)


class AdditiveLinear(AdditiveLayer):
    """nn.Linear, or the Conv1D of Transformers, which keeps its weight as (inputs, outputs)."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = features(self.get_base_layer())

    @abstractmethod
    def delta(self, name: str) -> torch.Tensor:
        """D (O, I), at least in float32."""

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """By one product with D."""
        return _linear(x, self.delta(name))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """D, transposed for Conv1D."""
        delta_OI = self.delta(adapter)
        return delta_OI.T if isinstance(self.get_base_layer(), Conv1D) else delta_OI


class FactoredLinear(AdditiveLinear):
    """A linear layer whose adapters add a product: D = B A."""

    @abstractmethod
    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (R, I) and B (O, R), of one dtype."""

    def delta(self, name: str) -> torch.Tensor:
        """B A."""
        A_RI, B_OR = self.factors(name)
        wide = torch.promote_types(A_RI.dtype, torch.float32)
        return B_OR.to(wide) @ A_RI.to(wide)

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """B A x."""
        A_RI, B_OR = self.factors(name)
        return _linear(_linear(x, A_RI), B_OR)


def features(base: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(base, Conv1D):
        return weight_of(base).shape[0], weight_of(base).shape[1]
    return base.in_features, base.out_features


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return F.linear(x.to(dtype), weight.to(dtype))
