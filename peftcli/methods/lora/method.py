"""LoRA as the engine sees it: which layers it takes, and how an adapter is put on one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import (
    AddOptions,
    Call,
    Method,
    Sample,
    bare,
    reads_past,
    settle_fan_in_fan_out,
)
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.patterns import by_pattern, matches
from peftcli.adapters.targets import find_parameters, find_targets
from peftcli.adapters.updates import Product, Update
from peftcli.adapters.weights import is_quantized
from peftcli.errors import AdapterError
from peftcli.methods.lora.activation import activated, uncalled
from peftcli.methods.lora.combine import add_weighted_adapter
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.conv import BY_TYPE as CONVOLUTIONS
from peftcli.methods.lora.difference import parted, since, subtract_mutated_init
from peftcli.methods.lora.embedding import Embedding
from peftcli.methods.lora.hotswap import swap
from peftcli.methods.lora.initial import is_handed_over
from peftcli.methods.lora.layer import Linear, LoraLayer
from peftcli.methods.lora.parameters import ParamWrapper, parameter_problem
from peftcli.methods.lora.starts import strategy_of

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
        """Why this module, or a parameter of it, cannot be adapted, or nothing."""
        if site.parameter:
            return parameter_problem(site)
        base: Any = bare(site.module)
        kind = _layer_class(base)
        if kind is None or (config.reads_inputs and kind is not Linear):
            takes = (
                "alora_invocation_tokens takes nn.Linear and Conv1D"
                if config.reads_inputs
                else f"LoRA takes {SUPPORTED}"
            )
            return f"{site.name} is a {type(base).__name__}; {takes}"
        if reads_past(site):
            return f"{site.name}: Mamba's kernels read this layer's weight past the adapter; leave it out"
        if nested := self._nested_problem(site, config):
            return nested
        if isinstance(base, nn.Embedding):
            return f"{site.name} is an embedding with max_norm" if base.max_norm is not None else ""
        if type(base) in CONVOLUTIONS:
            return self._convolution_problem(site, base, config)
        start = strategy_of(config)
        if start.changes_base and not start.fits_quantized and is_quantized(base):
            return (
                f"{site.name} is quantized; init_lora_weights {config.init_lora_weights!r} changes the base"
            )
        return ""

    def wrap(self, site: Site, config: LoraConfig, tuner: Any) -> LoraLayer:  # noqa: ARG002  (other methods need them)
        """A layer of the kind that the module asks for, or one for a parameter of it."""
        if site.parameter:
            # What acts on inputs it has not: none go through it.
            return ParamWrapper(site.module, site.parameter)  # type: ignore[abstract]
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

    def prepare(self, model: nn.Module, config: LoraConfig, sample: Sample) -> str:
        """Lets the start that the config names look at the rows."""
        if config.changes_base and config.use_dora:
            raise AdapterError(
                f"use_dora: an adapter with init_lora_weights {config.init_lora_weights!r} is written for the base as "
                "it was, which one with DoRA cannot be; leave one of them out"
            )
        sites, _ = find_targets(
            model, config, strict=True, takes=lambda site: not self.problem(site, config, model)
        )
        sites += find_parameters(model, config, sites, strict=True)
        if problem := next(filter(None, (self.problem(site, config, model) for site in sites)), ""):
            raise AdapterError(problem)
        return strategy_of(config).prepare(model, sites, config, sample)

    def recall(
        self, model: nn.Module, config: LoraConfig, saved: LoraConfig, state: Mapping[str, torch.Tensor]
    ) -> None:
        """Lets that start remember."""
        strategy_of(config).recall(model, config, saved, state)

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
        if config.reads_inputs and config.task_type is None:
            complain("alora_invocation_tokens needs the task_type CAUSAL_LM; set it", strict=strict)
        start = strategy_of(config)
        for site in sites:
            if message := start.problem(self._rank(config, site.name)):
                complain(f"{site.name}: init_lora_weights: {message}", strict=True)
            is_linear = isinstance(bare(site.module), nn.Linear | Conv1D) and not site.parameter
            if start.linear_only and not is_linear:
                complain(
                    f"{site.name}: init_lora_weights {config.init_lora_weights!r} is for linear layers only",
                    strict=strict,
                )
        self._check_found(sites, config, strict=strict)
        self._check_others(config, others)
        self._complete(sites, config)

    def during(self, tuner: Any, names: Sequence[str], call: Call) -> AbstractContextManager[None]:
        """Tells layers with aLoRA where it acts."""
        return activated(tuner, names, call)

    def about(self, config: LoraConfig, rows: Iterable[Sequence[int]]) -> str:
        """In how many aLoRA would not act."""
        return uncalled(rows, config.alora_invocation_tokens or ())

    def since(
        self, state: dict[str, torch.Tensor], initial: Mapping[str, torch.Tensor], config: LoraConfig
    ) -> tuple[dict[str, torch.Tensor], LoraConfig]:
        """A plain adapter of twice the rank."""
        return since(state, initial, config)

    def parted(
        self, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The halves of its factors."""
        return parted(state)

    def swap(
        self, tuner: Any, adapter_name: str, state: Mapping[str, torch.Tensor], config: LoraConfig
    ) -> None:
        """Weights and factors, in place."""
        swap(tuner, adapter_name, state, config)

    def update(self, tensors: Mapping[str, torch.Tensor], config: LoraConfig, name: str) -> Update | None:
        """Scaled B A; with DoRA, before the magnitudes, which act on what the base holds as well."""
        A = tensors.get("lora_A.weight", tensors.get("lora_embedding_A"))
        B = tensors.get("lora_B.weight", tensors.get("lora_embedding_B"))
        if A is None or B is None or min(A.dim(), B.dim()) < 2:
            return None
        A_RI, B_OR = A.flatten(1), B.flatten(1)
        rank = self._rank(config, name)
        if not len(A_RI) == rank == B_OR.shape[1]:  # convolutions with groups, experts side by side
            return None
        alpha = by_pattern(config.alpha_pattern, name, config.lora_alpha)
        return Product(B_OR * (alpha / (math.sqrt(rank) if config.use_rslora else rank)), A_RI)

    def _complete(self, sites: Sequence[Site], config: LoraConfig) -> None:
        settle_fan_in_fan_out([site for site in sites if not site.parameter], config)
        if config.fan_in_fan_out and config.target_parameters:
            complain(
                "target_parameters: not beside target_modules that keep their weight as (in, out)",
                strict=True,
            )
        if config.lora_dropout and any(isinstance(bare(site.module), nn.Embedding) for site in sites):
            warnings.warn("lora_dropout does not act on embeddings", stacklevel=2)

    def _check_found(self, sites: Sequence[Site], config: LoraConfig, *, strict: bool) -> None:
        """What must have been done to the base before."""
        start, name = strategy_of(config), f"init_lora_weights {config.init_lora_weights!r}"
        modules = [bare(site.module) for site in sites]
        if start.prepared_by and not any(is_handed_over(module, start) for module in modules):
            remedy = f"call {start.prepared_by} with the model and its config before get_peft_model"
            loaded = "the adapter is for the base as it was changed for it, and not for the published one"
            complain(f"{name}: {remedy if strict else loaded}", strict=strict)
        if strict and start.fits_quantized and any(is_quantized(module) for module in modules):
            raise AdapterError(
                f"{name} rounds a base that is not quantized yet; on this one set it to true, and call "
                "replace_lora_weights_loftq after get_peft_model"
            )

    def _check_others(self, config: LoraConfig, others: Sequence[LoraConfig]) -> None:
        changing = [item.init_lora_weights for item in (config, *others) if strategy_of(item).changes_base]
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
        changes_base = strategy_of(config).changes_base
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
