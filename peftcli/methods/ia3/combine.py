"""One (IA)³ adapter made of several, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from peftcli.adapters.method import AddOptions
from peftcli.adapters.targets import shortest
from peftcli.adapters.walk import walk
from peftcli.errors import AdapterError
from peftcli.methods.ia3.layer import IA3Layer


@torch.no_grad()
def add_weighted_adapter(
    tuner: Any, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Adds an adapter whose scales are weighted sums of others'; it is not active, and not trained.

    Raises:
        AdapterError: where there are no such adapters.
    """
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"give one weight for each adapter: {len(adapters)} adapters, {len(weights)} weights"
        )
    for name in adapters:
        tuner.method_of(name)
    sites = list(walk(tuner.model))
    names = [site.name for site in sites]
    layers = {
        site.name: site.module
        for site in sites
        if isinstance(site.module, IA3Layer) and set(site.module.ia3_l) & set(adapters)
    }
    config = dataclasses.replace(
        tuner.peft_config[adapters[0]],
        target_modules=shortest(set(layers), names),
        feedforward_modules=shortest({name for name in layers if layers[name].is_feedforward}, names),
        exclude_modules=None,
    )
    tuner.attach(adapter_name, config, activate=False, strict=False, options=AddOptions(initialise=False))
    tuner.set_requires_grad(adapter_name, False)
    for layer in layers.values():
        shares = zip(adapters, weights, strict=True)
        parts = [layer.ia3_l[name] * weight for name, weight in shares if name in layer.ia3_l]
        layer.ia3_l[adapter_name].copy_(torch.stack(parts).sum(0))
