"""LoRA on convolutions: A is a convolution like the base's into R channels, B one with kernel 1 out of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.adapters.weights import base_weight, weight_of
from peftcli.errors import AdapterError
from peftcli.methods.lora.layer import LoraLayer


class ConvNd(LoraLayer):
    """A convolution of any dimension with LoRA adapters.

    With groups, A still sees all channels, as PEFT's does; such an update is no grouped kernel, and cannot be merged.
    """

    convolve: ClassVar[Any]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        base: Any = self.get_base_layer()
        self.in_features, self.out_features = base.in_channels, base.out_channels

    def make_factors(self, name: str, r: int, device: torch.device, dtype: torch.dtype) -> None:
        """A (r, channels, *kernel) and B (outputs, r, 1…), each in a convolution, as PEFT has them."""
        base: Any = self.get_base_layer()
        kind: Any = type(base)
        like: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.lora_A[name] = kind(
            base.in_channels, r, base.kernel_size, base.stride, base.padding, base.dilation, **like
        )
        self.lora_B[name] = kind(r, base.out_channels, 1, groups=base.groups, **like)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernels, flat."""
        if self._groups() > 1:
            raise AdapterError("an adapter on a convolution with groups is no kernel; it cannot be merged")
        return weight_of(self.lora_A[name]).flatten(1), weight_of(self.lora_B[name]).flatten(1)

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The kernel, flat per output."""
        return weight.flatten(1)

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """In the kernel's shape."""
        return matrix_OI.reshape(weight_of(self.get_base_layer()).shape)

    def base_product(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution without its bias."""
        base: Any = self.get_base_layer()
        weight = base_weight(base).to(x.dtype)
        product: torch.Tensor = self.convolve(
            x, weight, None, base.stride, base.padding, base.dilation, base.groups
        )
        return product

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """B(A(x)), in the adapter's dtype."""
        A, B = self.lora_A[name], self.lora_B[name]
        updated: torch.Tensor = B(A(x.to(weight_of(A).dtype)))
        return updated

    def per_output(self, values_O: torch.Tensor) -> torch.Tensor:
        """Outputs are the second dimension."""
        return values_O.reshape(self.magnitude_shape(-1))

    def magnitude_shape(self, outputs: int) -> tuple[int, ...]:
        """(1, outputs, 1…)."""
        return (1, outputs, *[1] * (weight_of(self.get_base_layer()).dim() - 2))

    def _groups(self) -> int:
        base: Any = self.get_base_layer()
        return int(base.groups)


class Conv1d(ConvNd):
    """LoRA on nn.Conv1d."""

    convolve = staticmethod(F.conv1d)


class Conv2d(ConvNd):
    """LoRA on nn.Conv2d."""

    convolve = staticmethod(F.conv2d)


class Conv3d(ConvNd):
    """LoRA on nn.Conv3d."""

    convolve = staticmethod(F.conv3d)


BY_TYPE: dict[type[nn.Module], type[LoraLayer]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
