"""Adapters without memory: their weights stay on the meta device until a file's are put in their place."""

from __future__ import annotations

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer, owner_of
from peftcli.adapters.walk import stack, walk


def to_meta(layer: AdapterLayer, adapter_name: str) -> None:
    """Lets go of the memory of an adapter's weights on a layer."""
    for item in list(layer.adapter_tensors(adapter_name)):
        parent, child = owner_of(layer, item.live)
        _put(parent, child, torch.empty_like(item.tensor, device="meta"))


def materialise(model: nn.Module, adapter_name: str) -> None:
    """Gives an adapter's weights memory where they have none, beside the base's; their values are yet to come."""
    made: dict[torch.Tensor, torch.Tensor] = {}  # what layers have in common stays one
    for site in walk(model):
        for layer in stack(site.module):
            for item in [item for item in layer.adapter_tensors(adapter_name) if item.tensor.is_meta]:
                device = next(layer.get_base_layer().parameters()).device
                parent, child = owner_of(layer, item.live)
                if item.tensor in made:
                    setattr(parent, child, made[item.tensor])
                elif device.type != "meta":
                    made[item.tensor] = _put(parent, child, torch.empty_like(item.tensor, device=device))


def _put(parent: nn.Module, child: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor cannot move to or from meta in place: it is replaced, by what is returned."""
    old = getattr(parent, child)
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    setattr(parent, child, new)
    return new
