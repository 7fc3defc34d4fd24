"""What bitsandbytes leaves of a base: its linear layers in 4 or 8 bits, one of them unpacked at a time.

Its kernels know no tensors without numbers, so that this, alone of the plan, is reckoned and not rehearsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# Bytes a weight: 4 bits and a float32 scale for 64 weights, of which the double kind keeps 8 bits (Dettmers et al.,
# "QLoRA", 2023, arXiv:2305.14314); 8 bits, with a scale for a row, which is next to nothing.
_FOUR, _DOUBLE, _EIGHT = 0.5 + 4 / 64, 0.5 + 1 / 64, 1.0


def stored(model: Any, quantization: Mapping[str, Any] | None) -> tuple[int, int]:
    """The bytes that the base has less than unpacked, and those of its largest layer while it is unpacked."""
    if not quantization:
        return 0, 0
    if quantization.get("load_in_4bit"):
        each = _DOUBLE if quantization.get("bnb_4bit_use_double_quant") else _FOUR
    else:
        each = _EIGHT
    # Transformers leaves the head as it is, where the recipe does not say what to leave.
    left = quantization.get("llm_int8_skip_modules") or ["lm_head"]
    weights = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in left for part in name.split("."))
    ]
    saved = sum(int(weight.numel() * (weight.element_size() - each)) for weight in weights)
    return saved, max((weight.numel() * weight.element_size() for weight in weights), default=0)
