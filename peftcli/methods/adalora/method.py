"""AdaLoRA as the engine sees it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, LayerMethod, settle_fan_in_fan_out
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.updates import Product, Update
from peftcli.adapters.walk import stack, walk
from peftcli.errors import AdapterError
from peftcli.methods.adalora.allocation import allocate, budget, mask, notice, orthogonality
from peftcli.methods.adalora.config import AdaLoraConfig
from peftcli.methods.adalora.layer import AdaLoraLayer, SVDConv2d, SVDLinear, scaled

# What follows a layer's name in `rank_pattern`.
_ENTRY = ".lora_E"


class AdaLoraMethod(LayerMethod):
    """AdaLoRA. Ranks are settled when the config has a `rank_pattern`; until then training allocates them.

    Pruned ranks stay in the layers, with E zero, since an optimizer holds them; files leave them out.
    """

    prefix = "lora_"
    layer = AdaLoraLayer
    kinds: ClassVar = {nn.Linear: SVDLinear, Conv1D: SVDLinear, nn.Conv2d: SVDConv2d}

    def resolve(
        self,
        sites: Sequence[Site],
        config: AdaLoraConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,
    ) -> None:
        """Checks rank_pattern's names; sets fan_in_fan_out."""
        settle_fan_in_fan_out(sites, config)
        names = [site.name for site in sites]
        for name in _kept(config):
            if name not in names:
                complain(f"rank_pattern: {name!r} is no adapted module{similar(name, names)}", strict=strict)

    def add(
        self,
        layer: AdapterLayer,
        site: Site,
        adapter_name: str,
        config: AdaLoraConfig,
        options: AddOptions,
    ) -> None:
        """Makes a new adapter, of the rank that its file has."""
        assert isinstance(layer, AdaLoraLayer)
        flags = _kept(config).get(site.name)
        rank = config.init_r if flags is None else sum(flags)
        layer.add(adapter_name, rank, config, autocast=options.autocast_adapter_dtype)

    def update(
        self,
        tensors: Mapping[str, torch.Tensor],
        config: AdaLoraConfig,
        name: str,  # noqa: ARG002
    ) -> Update | None:
        """Scaled B E A."""
        A, B, E = (tensors.get(part) for part in AdaLoraLayer.adapter_layer_names)
        if A is None or B is None or E is None or not A.dim() == B.dim() == E.dim() == 2:
            return None
        if A.shape[0] != B.shape[1] or E.shape != (A.shape[0], 1):
            return None
        return Product(B * scaled(E, config.lora_alpha, config.init_r).T, A)

    def after_forward(self, tuner: Any, outputs: Any) -> Any:
        """With the penalty in the loss, where the model computed one."""
        if isinstance(getattr(outputs, "loss", None), torch.Tensor):
            penalty = self.penalty(tuner)
            if penalty is not None:
                outputs.loss = outputs.loss + penalty.to(outputs.loss.device)
        return outputs

    def penalty(self, tuner: Any) -> torch.Tensor | None:
        """The weighted orthogonality of A and B, while they train."""
        name, config = _active(tuner)
        layers = list(_layers(tuner, name).values())
        trains = any(layer.lora_A[name].requires_grad for layer in layers)
        if not trains or not config.orth_reg_weight:
            return None
        return config.orth_reg_weight * orthogonality(layers, name)

    def after_step(self, tuner: Any, step: int, total_steps: int | None = None) -> None:
        """Learns from the step's gradients which ranks matter, and prunes to the step's budget."""
        name, config = _active(tuner)
        found = _layers(tuner, name)
        layers = list(found.values())
        if config.rank_pattern is not None:
            self._settle(found, name, config)
            mask(layers, name)
            return
        fresh = not any(name in layer.sensitivity for layer in layers)
        if fresh:
            _schedule(config, total_steps)
        assert config.total_step is not None
        last = config.total_step - config.tfinal
        if step < last or fresh:
            notice(layers, name, config)
        if step >= last or (step > config.tinit and step % config.deltaT == 0):
            allocate(layers, name, budget(config, len(layers), step, last))
        if step >= last:
            config.rank_pattern = {
                f"{site}{_ENTRY}": layer.kept[name].flatten().bool().tolist() for site, layer in found.items()
            }

    def packed(
        self, state: dict[str, torch.Tensor], config: AdaLoraConfig, prefix: str
    ) -> dict[str, torch.Tensor]:
        """Without the ranks that were pruned."""
        for name, flags in _kept(config).items():
            for factor, dimension in (("lora_A", 0), ("lora_B", 1), ("lora_E", 0)):
                key = f"{prefix}{name}.{factor}"
                # Layers that were made from a file have lost the others already.
                if key in state and state[key].shape[dimension] > sum(flags):
                    wanted = torch.tensor(flags, device=state[key].device).nonzero().flatten()
                    state[key] = state[key].index_select(dimension, wanted)
        return state

    def fit(self, tuner: Any, adapter_name: str, config: AdaLoraConfig) -> None:
        """Gives the layers the ranks of the file, and takes over how they came about."""
        own: AdaLoraConfig = tuner.peft_config[adapter_name]
        own.rank_pattern = config.rank_pattern
        own.total_step = own.total_step or config.total_step
        kept = _kept(config)
        for site, layer in _layers(tuner, adapter_name).items():
            layer.resize(adapter_name, sum(kept[site]) if site in kept else config.init_r)

    def training_state(self, tuner: Any, adapter_name: str) -> dict[str, Any]:
        """What was learned about the ranks, and the factors with the ranks that a file leaves out."""
        return {
            site: {
                "factors": [factor.detach() for factor in layer.factors(adapter_name)],
                "sensitivity": layer.sensitivity.get(adapter_name),
                "uncertainty": layer.uncertainty.get(adapter_name),
            }
            for site, layer in _layers(tuner, adapter_name).items()
        }

    def load_training_state(self, tuner: Any, adapter_name: str, state: Mapping[str, Any]) -> None:
        """As it was there."""
        for site, layer in _layers(tuner, adapter_name).items():
            saved = state[site]
            factors = layer.factors(adapter_name)
            layer.resize(adapter_name, len(saved["factors"][0]))
            with torch.no_grad():
                for factor, value in zip(factors, saved["factors"], strict=True):
                    factor.copy_(value)
            for table in ("sensitivity", "uncertainty"):
                if saved[table] is not None:
                    pairs = zip(saved[table], factors, strict=True)
                    getattr(layer, table)[adapter_name] = [value.to(factor) for value, factor in pairs]

    def _settle(self, layers: Mapping[str, AdaLoraLayer], name: str, config: AdaLoraConfig) -> None:
        """Puts `rank_pattern` on layers that still have all their ranks (those of a file have lost them)."""
        kept = _kept(config)
        for site, layer in layers.items():
            flags = kept.get(site, [])
            if name not in layer.kept and len(flags) == layer.r[name]:
                layer.kept[name] = torch.tensor(flags)[:, None].to(layer.lora_E[name])


def _active(tuner: Any) -> tuple[str, AdaLoraConfig]:
    """The adapter in use."""
    name = tuner.active_adapters[0]
    return name, tuner.peft_config[name]


def _layers(tuner: Any, name: str) -> dict[str, AdaLoraLayer]:
    """The layers that have an adapter, by the name of what they are around."""
    return {
        site.name: layer
        for site in walk(tuner.model)
        for layer in stack(site.module)
        if isinstance(layer, AdaLoraLayer) and name in layer.lora_E
    }


def _kept(config: AdaLoraConfig) -> dict[str, list[bool]]:
    """`rank_pattern` by the layers' names; in a live model PEFT's keys end with the adapter's."""
    return {name.partition(_ENTRY)[0]: flags for name, flags in (config.rank_pattern or {}).items()}


def _schedule(config: AdaLoraConfig, total_steps: int | None) -> None:
    """Settles in how many steps ranks go down.

    Raises:
        AdapterError: where neither the config nor the run says it, or the run is too short.
    """
    if config.total_step is None:
        if total_steps is None:
            raise AdapterError(
                "AdaLoRA's ranks go down over the whole training; set total_step to its optimizer steps"
            )
        config.total_step = total_steps
        problems = [f"{field}: {problem}" for field, problem in config.conflicts() if problem]
        if problems:
            raise AdapterError("; ".join(problems))
    elif total_steps is not None and total_steps < config.total_step - config.tfinal:
        warnings.warn(
            f"total_step is {config.total_step}, but the run has {total_steps} steps: it ends before ranks are down to "
            "target_r",
            stacklevel=2,
        )
