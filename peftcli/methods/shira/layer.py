"""SHiRA on a linear layer: W x becomes W x + scaling · S x, where S is sparse and so of any rank.

Shapes: shira_weight (N,) has the values, and shira_indices (2, N) their rows and columns in W as (O, I); N is
r × (O + I). Indices are saved, as int32, but not trained.

Bhardwaj et al., "Sparse High Rank Adapters", 2024, arXiv:2406.13175.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, SavedTensor
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.remembered import remembered
from peftcli.adapters.weights import HALF, adapter_dtype, base_weight, is_quantized, weight_of
from peftcli.methods.shira.config import ShiraConfig


class ShiraLayer(AdapterLayer):
    """nn.Linear, or the Conv1D of Transformers, with SHiRA adapters on it."""

    adapter_layer_names = ("shira_weight",)
    other_param_names = ("r", "scaling", "shira_indices")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = sizes(self.get_base_layer())
        self.shira_weight = nn.ParameterDict()
        self.shira_indices = BufferDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}

    def add(self, name: str, config: ShiraConfig, *, autocast: bool) -> None:
        """Makes a new adapter: chooses places, with zeros or random numbers in them."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.r[name], self.scaling[name] = config.r, 1.0
        indices = random_places(self.out_features, self.in_features, config.r, config.random_seed)
        self.shira_indices[name] = indices.to(device, copy=True)
        make = torch.zeros if config.init_weights else torch.randn
        self.shira_weight[name] = nn.Parameter(make(indices.shape[1], dtype=dtype, device=device))

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiplies an adapter's update by `scale`."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Scaled S (O, I), with its zeros."""
        values = self.shira_weight[adapter] * self.scaling[adapter]
        rows, columns = self.shira_indices[adapter]
        delta: torch.Tensor = values.new_zeros(self.out_features, self.in_features)
        return delta.index_put((rows, columns), values)

    def adapter_tensors(self, name: str) -> Iterator[SavedTensor]:
        """As every layer's, and where the values go."""
        yield from super().adapter_tensors(name)
        if name in self.shira_indices:
            yield SavedTensor("shira_indices", f"shira_indices.{name}", self.shira_indices[name])

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight, with the values added."""
        weight = base_weight(self.get_base_layer())
        return {"weight": self._with(names, weight.float() if weight.dtype in HALF else weight)}

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output with the values in its weight; beside it, where the weight cannot be had as it is."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        names = [name for name in self._active_adapter if name in self.shira_weight]
        if self._disable_adapters or self.merged_adapters or not names:
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        base = self.base_layer
        if isinstance(base, AdapterLayer) or is_quantized(base):
            result: torch.Tensor = base(x, *args, **kwargs)
            for name in names:
                result = result + F.linear(x, self.get_delta_weight(name).to(x.dtype)).to(result.dtype)
            return result
        # Called and not only computed with: people hang hooks on it.
        weight = self._with(names, base_weight(base))
        changed: torch.Tensor = functional_call(base, {"weight": weight}, (x, *args), kwargs)
        return changed

    def _with(self, names: Sequence[str], weight: torch.Tensor) -> torch.Tensor:
        """A weight of the base layer's shape and any dtype with adapters' values in it, each rounded once."""
        for name in names:
            rows, columns = self.shira_indices[name]
            places = (columns, rows) if isinstance(self.get_base_layer(), Conv1D) else (rows, columns)
            values = weight[places] + self.shira_weight[name] * self.scaling[name]
            weight = weight.index_put(places, values.to(weight.dtype))
        return weight

    def __repr__(self) -> str:
        return f"shira.{super().__repr__()}"


# A model has few shapes of layers, and each permutation takes as long as a weight is large.
@remembered(8)
def random_places(outputs: int, inputs: int, r: int, seed: int | None) -> torch.Tensor:
    """Rows and columns of r × (outputs + inputs) places, in order: (2, N).

    They are those that PEFT chooses; without a seed, too, both choose the same every time.
    """
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    chosen = torch.randperm(outputs * inputs, generator=generator)[: r * (outputs + inputs)].sort().values
    return torch.stack([chosen // inputs, chosen % inputs]).to(torch.int32)


def sizes(base: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if isinstance(base, Conv1D):
        return weight_of(base).shape[0], weight_of(base).shape[1]
    return base.in_features, base.out_features
