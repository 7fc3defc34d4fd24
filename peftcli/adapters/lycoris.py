"""What LoHa and LoKr share: a dense update of a weight or a kernel, made of small tensors, and dropout of its rows.

Suffixes: O outputs, I inputs (of a convolution's group), K places of the kernel, R rank.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2023,
arXiv:2309.14859.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.adapters.additive import AdditiveLayer
from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.lycoris_config import LycorisConfig
from peftcli.adapters.method import AddOptions, LayerMethod
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.patterns import by_pattern, matches
from peftcli.adapters.weights import adapter_dtype, weight_of


class LycorisLayer(AdditiveLayer):
    """nn.Linear, nn.Conv1d or nn.Conv2d with such adapters on it."""

    other_param_names = ("r", "alpha", "scaling", "rank_dropout", "rank_dropout_scale", "module_dropout")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ParameterDict())
        self.r: dict[str, int] = {}
        self.alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.rank_dropout: dict[str, float] = {}
        self.rank_dropout_scale: dict[str, bool] = {}
        self.module_dropout: dict[str, float] = {}
        base: Any = self.get_base_layer()
        # A quantized linear layer's weight has another shape than this.
        linear = isinstance(base, nn.Linear)
        self.shape = (base.out_features, base.in_features) if linear else tuple(base.weight.shape)

    @abstractmethod
    def sizes(self, rank: int, config: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of a new adapter's tensors, by the containers' names."""

    @abstractmethod
    def zeros(self, sizes: dict[str, tuple[int, ...]], config: Any) -> str:
        """Which tensor starts at zero, so that the adapter does nothing; or nothing."""

    @abstractmethod
    def unscaled(self, name: str) -> torch.Tensor:
        """D in any shape that has as many numbers, in order."""

    def has(self, name: str) -> bool:
        """Adapters of one layer need not have the same tensors."""
        return name in self.scaling

    def add(self, name: str, rank: int, alpha: float, config: LycorisConfig, *, autocast: bool) -> None:
        """Makes a new adapter: uniform random numbers after He, and zeros in one tensor."""
        self.r[name], self.alpha[name], self.scaling[name] = rank, alpha, alpha / rank
        self.rank_dropout[name], self.module_dropout[name] = config.rank_dropout, config.module_dropout
        self.rank_dropout_scale[name] = getattr(config, "rank_dropout_scale", True)
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        sizes = self.sizes(rank, config)
        at_zero = self.zeros(sizes, config)
        for attribute, size in sizes.items():
            tensor = torch.zeros(size, dtype=dtype, device=device)
            if attribute != at_zero:
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
            getattr(self, attribute)[name] = nn.Parameter(tensor)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Makes an adapter's factor `scale` times what its config says."""
        if self.has(adapter):
            self.scaling[adapter] = scale * self.alpha[adapter] / self.r[adapter]

    def scale_layer(self, scale: float) -> None:
        """Multiplies the factors of the active adapters."""
        for name in filter(self.has, self._active_adapter):
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divides the factors of the active adapters, or gives them back what their config says."""
        for name in filter(self.has, self._active_adapter):
            if scale is None:
                self.set_scale(name, 1.0)
            else:
                self.scaling[name] /= scale

    def tensor(self, attribute: str, name: str) -> torch.Tensor:
        """One of an adapter's tensors, at least in float32."""
        value: torch.Tensor = getattr(self, attribute)[name]
        return value.to(torch.promote_types(value.dtype, torch.float32))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Without dropout."""
        return self.unscaled(adapter).reshape(self.shape) * self.scaling[adapter]

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """As the base layer does it with its weight."""
        base: Any = self.get_base_layer()
        delta = self.get_delta_weight(name)
        if self.training and (self.rank_dropout[name] or self.module_dropout[name]):
            delta = delta * self._kept(name, delta).view(-1, *[1] * (delta.dim() - 1))
        dtype = torch.promote_types(x.dtype, delta.dtype)
        x, delta = x.to(dtype), delta.to(dtype)
        if isinstance(base, nn.Linear):
            return F.linear(x, delta)
        result: torch.Tensor = base._conv_forward(x, delta, None)  # noqa: SLF001  (only this knows every padding_mode)
        return result

    def _kept(self, name: str, delta: torch.Tensor) -> torch.Tensor:
        """What each row is multiplied by. A layer that is left out gets zeros: every weight must have its gradient."""
        kept_O = (torch.rand(len(delta), device=delta.device) >= self.rank_dropout[name]).to(delta)
        if self.rank_dropout_scale[name]:
            kept_O = kept_O / kept_O.mean().clamp(min=1 / len(kept_O))  # all rows may be left out
        return kept_O * (torch.rand((), device=delta.device) >= self.module_dropout[name])


class LycorisMethod(LayerMethod):
    """A method with such layers."""

    def resolve(
        self,
        sites: Sequence[Site],
        config: LycorisConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,
    ) -> None:
        """Checks that the patterns' keys name layers."""
        names = [site.name for site in sites]
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(config, field):
                if not any(matches(key, name) for name in names):
                    complain(
                        f"{field}: {key!r} matches no adapted module{similar(key, names)}", strict=strict
                    )

    def add(
        self, layer: AdapterLayer, site: Site, adapter_name: str, config: LycorisConfig, options: AddOptions
    ) -> None:
        """Makes a new adapter, of the rank and alpha that the layer's name has."""
        assert isinstance(layer, LycorisLayer)
        rank = by_pattern(config.rank_pattern, site.name, config.r)
        alpha = by_pattern(config.alpha_pattern, site.name, config.alpha)
        layer.add(adapter_name, rank, alpha, config, autocast=options.autocast_adapter_dtype)

    def scaling(self, config: LycorisConfig, name: str) -> float:
        """What a layer's update is multiplied by."""
        alpha: float = by_pattern(config.alpha_pattern, name, config.alpha)
        rank: int = by_pattern(config.rank_pattern, name, config.r)
        return alpha / rank


def core_size(rank: int, kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape of a kernel's core: (R, R, K); a kernel of one dimension has a second one of 1, as in PEFT's files."""
    height, width = [*kernel, 1][:2]
    return (rank, rank, height, width)


def from_core(core: torch.Tensor, a_RO: torch.Tensor, b_RI: torch.Tensor) -> torch.Tensor:
    """A kernel (O, I, K) from its core (R, R, K) and the factors of its channels."""
    return torch.einsum("rshw,ro,si->oihw", core, a_RO, b_RI)
