"""A layer's weight as plain numbers, whatever way it is stored. Quantizers know no method, and methods no quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# bitsandbytes' parameter classes, by name: naming them costs no import where it is not installed.
_FOUR_BIT, _EIGHT_BIT = "Params4bit", "Int8Params"
HALF = (torch.float16, torch.bfloat16)


def weight_of(layer: nn.Module, name: str = "weight") -> torch.Tensor:
    """The layer's weight as it is stored."""
    weight = getattr(layer, name)
    assert isinstance(weight, torch.Tensor)
    return weight


def is_quantized(layer: nn.Module, name: str = "weight") -> bool:
    """Whether a layer's weight is stored in fewer bits than it computes with."""
    return type(getattr(layer, name, None)).__name__ in (_FOUR_BIT, _EIGHT_BIT)


def quantization_name(layer: nn.Module) -> str | None:
    """How a layer's weight is quantized, in PEFT's words."""
    names = {_FOUR_BIT: "bnb 4bit", _EIGHT_BIT: "bnb 8bit"}
    return names.get(type(getattr(layer, "weight", None)).__name__)


def base_weight(layer: nn.Module, name: str = "weight") -> torch.Tensor:
    """The layer's weight, detached; dequantized where it is quantized."""
    weight: Any = getattr(layer, name)
    kind = type(weight).__name__
    if kind == _FOUR_BIT:
        from bitsandbytes.functional import dequantize_4bit

        dequantized: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dequantized
    if kind == _EIGHT_BIT:
        from bitsandbytes.functional import int8_vectorwise_dequant

        state = getattr(layer, "state", None)
        scale = weight.SCB if weight.SCB is not None else getattr(state, "SCB", None)
        rows: torch.Tensor = int8_vectorwise_dequant(weight.data, scale)
        return rows
    plain: torch.Tensor = weight.detach()
    return plain


def exact(weight: torch.Tensor) -> torch.dtype:
    """The type to merge in, of which half-precision weights are then rounded once: in float32 they would be twice."""
    if weight.dtype not in HALF:
        return weight.dtype
    return torch.float32 if weight.device.type == "mps" else torch.float64


def adapter_dtype(layer: nn.Module, name: str = "weight", *, autocast: bool) -> torch.dtype:
    """The dtype of new adapter weights on a layer: the base's, but float32 for half precision where `autocast`."""
    dtype = weight_of(layer, name).dtype
    if not dtype.is_floating_point:
        dtype = getattr(layer, "compute_dtype", None) or torch.float32
    if autocast and (dtype in HALF or dtype.itemsize == 1):
        return torch.float32
    return dtype
