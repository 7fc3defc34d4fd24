"""How strongly adapters act, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from peftcli.errors import AdapterError
from peftcli.methods.lora.layer import LoraLayer


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiplies the factors of all LoRA adapters for as long as the context lasts.

    Between 0 and 1 it interpolates between the base and the adapted model (WiSE-FT: Wortsman et al., 2021,
    arXiv:2109.01903).

    Raises:
        TypeError: where the multiplier is no number.
        AdapterError: where the model has no LoRA layers.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float):
        raise TypeError(f"multiplier must be a number, not {multiplier!r}")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise AdapterError("the model has no LoRA layers, so there is nothing to rescale")
    before = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = {name: scale * multiplier for name, scale in layer.scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling
