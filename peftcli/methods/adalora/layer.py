"""AdaLoRA on a layer: W x becomes W x + scaling / rank · B E A x; E is diagonal, as singular values are.

Suffixes: O outputs, I inputs (a convolution's are channels × kernel), R rank. A is (R, I), B (O, R), E (R, 1).
`ranknum` is the rank at the start, by which the update is divided for good; PEFT has it as a parameter, not saved.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv:2303.10512.
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
from peftcli.adapters.weights import HALF, adapter_dtype, base_weight, weight_of
from peftcli.methods.adalora.config import AdaLoraConfig


class AdaLoraLayer(AdapterLayer):
    """A layer with AdaLoRA adapters on it.

    While an adapter trains, `sensitivity` and `uncertainty` have running means for its A, B and E, and `kept` has ones
    (R, 1) for the ranks that it keeps.
    """

    adapter_layer_names = ("lora_A", "lora_B", "lora_E")
    other_param_names = (
        "r",
        "lora_alpha",
        "scaling",
        "lora_dropout",
        "ranknum",
        "sensitivity",
        "uncertainty",
        "kept",
    )

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.lora_E = nn.ParameterDict()
        self.ranknum = nn.ParameterDict()
        self.lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.sensitivity: dict[str, list[torch.Tensor]] = {}
        self.uncertainty: dict[str, list[torch.Tensor]] = {}
        self.kept: dict[str, torch.Tensor] = {}
        self.in_features, self.out_features = self.sizes()

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of the weight as a matrix."""

    @abstractmethod
    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """W_OI in the shape of the base layer's weight."""

    @abstractmethod
    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What an adapter adds to the output for `x`, which is of the wider dtype and had its dropout."""

    def add(self, name: str, r: int, config: AdaLoraConfig, *, autocast: bool) -> None:
        """Makes a new adapter: with E zero, or all at random."""
        weight = weight_of(self.get_base_layer())
        dtype = adapter_dtype(self.get_base_layer(), autocast=autocast)
        std = 0.02 if config.init_lora_weights else 1.0

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=weight.device, dtype=dtype).normal_(std=std))

        self.lora_A[name] = normal(r, self.in_features, std=std)
        self.lora_B[name] = normal(self.out_features, r, std=std)
        self.lora_E[name] = normal(r, 1, std=0.0 if config.init_lora_weights else 1.0)
        start = torch.tensor([float(config.init_r)], device=weight.device, dtype=dtype)
        self.ranknum[name] = nn.Parameter(start, requires_grad=False)
        self.r[name], self.lora_alpha[name] = r, config.lora_alpha
        self.scaling[name] = config.lora_alpha
        self.lora_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    def factors(self, name: str) -> list[nn.Parameter]:
        """A, B and E."""
        return [getattr(self, attribute)[name] for attribute in self.adapter_layer_names]

    def resize(self, name: str, r: int) -> None:
        """Gives A, B and E another rank; what was in them is lost. An optimizer keeps its hold on them."""
        if r != self.r[name]:
            A_RI, B_OR, E_R1 = self.factors(name)
            A_RI.data = A_RI.new_empty(r, A_RI.shape[1])
            B_OR.data = B_OR.new_empty(B_OR.shape[0], r)
            E_R1.data = E_R1.new_empty(r, 1)
            self.r[name] = r
        self.kept.pop(name, None)

    def values(self, name: str) -> torch.Tensor:
        """E, scaled: (R, 1)."""
        return scaled(self.lora_E[name], self.scaling[name], self.ranknum[name])

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Scaled B E A in the shape of the base layer's weight."""
        delta_OI = self.lora_B[adapter] @ (self.lora_A[adapter] * self.values(adapter))
        return self.unmatrix(delta_OI)

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight, with the updates added."""
        weight = base_weight(self.get_base_layer())
        merged = weight.float() if weight.dtype in HALF else weight.clone()
        for name in names:
            merged = merged + self.get_delta_weight(name)
        return {"weight": merged.contiguous()}

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, with what the active adapters add, in the base layer's dtype."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged_adapters:
            return result
        dtype = result.dtype
        for name in self._active_adapter:
            if name in self.lora_E:
                wide = torch.promote_types(x.dtype, self.lora_A[name].dtype)
                result = result + self.update(name, self.lora_dropout[name](x.to(wide)))
        return result.to(dtype)

    def __repr__(self) -> str:
        return f"adalora.{super().__repr__()}"


def scaled(E_R1: torch.Tensor, scaling: float, ranknum: torch.Tensor | int) -> torch.Tensor:
    """E as it multiplies; `ranknum` is the rank at the start."""
    # PEFT's small number, which for a rank of 0 was to save the division.
    return E_R1 * (scaling / (ranknum + 1e-5))


class SVDLinear(AdaLoraLayer):
    """AdaLoRA on nn.Linear, or on the Conv1D of Transformers, which keeps its weight as (inputs, outputs)."""

    def sizes(self) -> tuple[int, int]:
        """Of either layer."""
        base: Any = self.get_base_layer()
        if isinstance(base, Conv1D):
            return base.weight.shape[0], base.weight.shape[1]
        return base.in_features, base.out_features

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """The matrix, or its transpose."""
        return matrix_OI.T if isinstance(self.get_base_layer(), Conv1D) else matrix_OI

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """From right to left: x never meets a matrix of O × I."""
        inner = F.linear(x, self.lora_A[name].to(x.dtype)) * self.values(name).to(x.dtype).flatten()
        return F.linear(inner, self.lora_B[name].to(inner.dtype))


class SVDConv2d(AdaLoraLayer):
    """AdaLoRA on nn.Conv2d: the kernel's update is B E A."""

    def sizes(self) -> tuple[int, int]:
        """Of the kernel, flat per output: with groups, an output has the inputs of its group."""
        base: Any = self.get_base_layer()
        return base.weight[0].numel(), base.out_channels

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """In the kernel's shape."""
        return matrix_OI.reshape(weight_of(self.get_base_layer()).shape)

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A convolution as the base's, without its bias."""
        base: Any = self.get_base_layer()
        kernel = self.get_delta_weight(name).to(x.dtype)
        # The one place where PyTorch keeps what a convolution does besides its weight: padding modes, dilation, …
        updated: torch.Tensor = base._conv_forward(x, kernel, None)  # noqa: SLF001
        return updated
