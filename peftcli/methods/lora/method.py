"""LoRA as the engine sees it: which layers it takes, and how an adapter is put on one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, Method, bare, reads_past, settle_fan_in_fan_out
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.patterns import by_pattern, matches
from peftcli.adapters.weights import is_quantized
from peftcli.methods.lora.combine import add_weighted_adapter
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.conv import BY_TYPE as CONVOLUTIONS
from peftcli.methods.lora.difference import since, subtract_mutated_init
from peftcli.methods.lora.embedding import Embedding
from peftcli.methods.lora.hotswap import swap
from peftcli.methods.lora.initial import strategy_of
from peftcli.methods.lora.layer import Linear, LoraLayer

SUPPORTED = "nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Embedding"


class LoraMethod(Method):
    """LoRA with its variants."""

    prefix = "lora_"
    layer = LoraLayer
    operations: ClassVar = {
        "add_weighted_adapter": add_weighted_adapter,
        "subtract_mutated_init": subtract_mutated_init,
    }

    def problem(self, site: Site, config: LoraConfig, model: nn.Module) -> str:  # noqa: ARG002  (as others have it)
        """Why this module cannot be adapted, or nothing."""
        base: Any = bare(site.module)
        if _layer_class(base) is None:
            return f"{site.name} is a {type(base).__name__}; LoRA takes {SUPPORTED}"
        if reads_past(site):
            return f"{site.name}: Mamba's kernels read this layer's weight past the adapter; leave it out"
        if nested := self._nested_problem(site, config):
            return nested
        if isinstance(base, nn.Embedding):
            return f"{site.name} is an embedding with max_norm" if base.max_norm is not None else ""
        if type(base) in CONVOLUTIONS:
            return self._convolution_problem(site, base, config)
        if strategy_of(config.init_lora_weights).changes_base and is_quantized(base):
            return (
                f"{site.name} is quantized; init_lora_weights {config.init_lora_weights!r} changes the base"
            )
        return ""

    def wrap(self, site: Site, config: LoraConfig, tuner: Any) -> LoraLayer:  # noqa: ARG002  (other methods need them)
        """A layer of the kind that the module asks for."""
        kind = _layer_class(bare(site.module))
        assert kind is not None  # `problem` was asked first
        return kind(site.module)

    def add(
        self, layer: AdapterLayer, site: Site, adapter_name: str, config: LoraConfig, options: AddOptions
    ) -> None:
        """Makes a new adapter with the rank and alpha that its name has."""
        assert isinstance(layer, LoraLayer)
        alpha = by_pattern(config.alpha_pattern, site.name, config.lora_alpha)
        layer.add(adapter_name, self._rank(config, site.name), alpha, config, options)

    def resolve(
        self, sites: Sequence[Site], config: LoraConfig, others: Sequence[LoraConfig], strict: bool
    ) -> None:
        """Checks patterns, ranks and starts; sets fan_in_fan_out to what the layers are."""
        names = [site.name for site in sites]
        for field, pattern in (
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
        ):
            for key in pattern:
                if not any(matches(key, name) for name in names):
                    complain(
                        f"{field}: {key!r} matches no adapted module{similar(key, names)}", strict=strict
                    )
        start = strategy_of(config.init_lora_weights)
        for site in sites:
            if message := start.problem(self._rank(config, site.name)):
                complain(f"{site.name}: init_lora_weights: {message}", strict=True)
            if start.linear_only and not isinstance(bare(site.module), nn.Linear | Conv1D):
                complain(
                    f"{site.name}: init_lora_weights {config.init_lora_weights!r} is for linear layers only",
                    strict=strict,
                )
        self._check_others(config, others)
        self._complete(sites, config)

    def since(
        self, state: dict[str, torch.Tensor], initial: Mapping[str, torch.Tensor], config: LoraConfig
    ) -> tuple[dict[str, torch.Tensor], LoraConfig]:
        """A plain adapter of twice the rank."""
        return since(state, initial, config)

    def swap(
        self, tuner: Any, adapter_name: str, state: Mapping[str, torch.Tensor], config: LoraConfig
    ) -> None:
        """Weights and factors, in place."""
        swap(tuner, adapter_name, state, config)

    def _complete(self, sites: Sequence[Site], config: LoraConfig) -> None:
        settle_fan_in_fan_out(sites, config)
        if config.lora_dropout and any(isinstance(bare(site.module), nn.Embedding) for site in sites):
            warnings.warn("lora_dropout does not act on embeddings", stacklevel=2)

    def _check_others(self, config: LoraConfig, others: Sequence[LoraConfig]) -> None:
        changing = [
            item.init_lora_weights
            for item in (config, *others)
            if strategy_of(item.init_lora_weights).changes_base
        ]
        if changing and others:
            complain(
                f"init_lora_weights {changing[0]!r} changes the base model, which the other adapters count on; "
                "use it alone",
                strict=True,
            )

    def _rank(self, config: LoraConfig, name: str) -> int:
        return int(by_pattern(config.rank_pattern, name, config.r))

    def _nested_problem(self, site: Site, config: LoraConfig) -> str:
        """Around another method's layer, the base's weight is not all that is there."""
        if not isinstance(site.module, AdapterLayer) or isinstance(site.module, LoraLayer):
            return ""
        changes_base = strategy_of(config.init_lora_weights).changes_base
        reader = f"init_lora_weights {config.init_lora_weights!r}" if changes_base else "use_dora"
        if not changes_base and not config.use_dora:
            return ""
        return f"{site.name}: {reader} reads the base's weight; add it before the others"

    def _convolution_problem(self, site: Site, base: Any, config: LoraConfig) -> str:
        if base.padding_mode != "zeros":
            return f"{site.name} pads with {base.padding_mode!r}; LoRA takes convolutions that pad with zeros"
        if base.groups > 1 and config.use_dora:
            return f"{site.name} is a convolution with groups, which use_dora does not take"
        rank = self._rank(config, site.name)
        if rank % base.groups:
            return f"{site.name} has {base.groups} groups; choose a rank that they divide, not {rank}"
        return ""


def _layer_class(base: nn.Module) -> type[LoraLayer] | None:
    if isinstance(base, nn.Linear | Conv1D):
        return Linear
    if isinstance(base, nn.Embedding):
        return Embedding
    return CONVOLUTIONS.get(type(base))
