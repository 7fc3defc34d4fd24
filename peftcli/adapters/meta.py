"""Adapters without memory: their weights stay on the meta device until a file's are put in their place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.walk import stack, walk


def to_meta(layer: AdapterLayer, adapter_name: str) -> None:
    """Lets go of the memory of an adapter's weights on a layer."""
    for parent, child, tensor in _places(layer, adapter_name):
        _put(parent, child, torch.empty_like(tensor, device="meta"))


def materialise(model: nn.Module, adapter_name: str) -> None:
    """Gives an adapter's weights memory where they have none, beside the base's; their values are yet to come."""
    made: dict[torch.Tensor, torch.Tensor] = {}  # what layers have in common stays one
    for site in walk(model):
        for layer in stack(site.module):
            device = next(layer.get_base_layer().parameters()).device
            for parent, child, tensor in _places(layer, adapter_name):
                if tensor in made:
                    setattr(parent, child, made[tensor])
                elif tensor.is_meta and device.type != "meta":
                    made[tensor] = _put(parent, child, torch.empty_like(tensor, device=device))


def _places(layer: AdapterLayer, adapter_name: str) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for item in list(layer.adapter_tensors(adapter_name)):
        path, _, child = item.live.rpartition(".")
        yield layer.get_submodule(path), child, item.tensor


def _put(parent: nn.Module, child: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor cannot move to or from meta in place: it is replaced, by what is returned."""
    old = getattr(parent, child)
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    setattr(parent, child, new)
    return new
