"""Another adapter's weights in the place of one's, with no new modules: a compiled model need not be compiled anew.

For adapters of several ranks, the weights can be made as large as the largest of them beforehand, with zeros; and the
factors become tensors, since a number in compiled code is a constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from peftcli.adapters.patterns import by_pattern
from peftcli.adapters.walk import stack, walk
from peftcli.adapters.weights import weight_of
from peftcli.errors import AdapterError, PeftWarning
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.layer import LoraLayer

# What the layers, and compiled code, were made for.
_FIXED = ("use_dora", "lora_dropout", "alora_invocation_tokens")


@torch.no_grad()
def swap(tuner: Any, adapter_name: str, state: Mapping[str, torch.Tensor], config: LoraConfig) -> None:
    """Puts an adapter's tensors (keys within the base model) and factors in the place of another's.

    Layers that the new adapter does not have get zeros. Everything is checked before anything is changed.

    Raises:
        AdapterError: where the new adapter needs layers or settings that the old one does not have.
    """
    live = {
        f"{name}.{item.saved}": item.tensor
        for name, layer in _layers(tuner.model, adapter_name)
        for item in layer.adapter_tensors(adapter_name)
    }
    _check(tuner, adapter_name, state, config, live)
    for key, tensor in live.items():
        if key in state:
            _put(tensor, state[key])
        else:
            tensor.zero_()
    for name, layer in _layers(tuner.model, adapter_name):
        layer.r[adapter_name] = int(by_pattern(config.rank_pattern, name, config.r))
        layer.lora_alpha[adapter_name] = by_pattern(config.alpha_pattern, name, config.lora_alpha)
        layer.use_rslora[adapter_name] = config.use_rslora
        scaling: dict[str, Any] = layer.scaling
        factor = scaling[adapter_name]
        layer.set_scale(adapter_name, 1.0)
        if isinstance(factor, torch.Tensor):
            scaling[adapter_name] = factor.fill_(scaling[adapter_name])
    tuner.peft_config[adapter_name] = config


def prepare_model_for_compiled_hotswap(
    model: nn.Module,
    *,
    target_rank: int | None = None,
    config: LoraConfig | Mapping[str, LoraConfig] | None = None,
    check_compiled: Literal["error", "warn", "ignore"] = "error",
) -> None:
    """Makes a model's LoRA adapters such that others can be swapped in once it is compiled.

    To be called with the first adapter loaded, before `torch.compile`.

    Args:
        model: the model.
        target_rank: the largest rank of the adapters to come; default: all have the rank that is there.
        config: the adapters' configs, whose ranks become `target_rank` as well.
        check_compiled: what to do where the model is compiled already: "error", "warn" or "ignore".

    Raises:
        AdapterError: where the model is compiled already, has no LoRA layers, or has larger ranks.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None):
        _say_compiled(check_compiled)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise AdapterError("the model has no LoRA layers; load the first adapter before")
    if any(layer.parameter for layer in layers):
        raise AdapterError("adapters on parameters (target_parameters) cannot be swapped")
    for layer in layers:
        device = weight_of(layer.get_base_layer()).device
        scaling: dict[str, Any] = layer.scaling
        for name, factor in scaling.items():
            scaling[name] = torch.as_tensor(factor, dtype=torch.float32, device=device)
            if target_rank is not None:
                _enlarge(layer, name, target_rank)
    if target_rank is not None:
        for item in config.values() if isinstance(config, Mapping) else [config] if config else []:
            item.r = target_rank
            item.rank_pattern = dict.fromkeys(item.rank_pattern, target_rank)


def _say_compiled(how: str) -> None:
    message = "the model is compiled already; prepare it before torch.compile"
    if how == "warn":
        warnings.warn(message, PeftWarning, stacklevel=3)
    elif how != "ignore":
        raise AdapterError(message)


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, LoraLayer]]:
    for site in walk(model):
        for layer in stack(site.module):
            if isinstance(layer, LoraLayer) and adapter_name in layer.r:
                yield site.name, layer


def _check(
    tuner: Any,
    adapter_name: str,
    state: Mapping[str, torch.Tensor],
    config: LoraConfig,
    live: Mapping[str, torch.Tensor],
) -> None:
    old = tuner.peft_config[adapter_name]
    if config.target_parameters or old.target_parameters:
        raise AdapterError(
            "adapters on parameters (target_parameters) cannot be swapped; load it under a name of its own"
        )
    if config.trains_tokens or old.trains_tokens:
        raise AdapterError(
            "adapters that train tokens (trainable_token_indices) cannot be swapped; load it under a name of its own"
        )
    for field in ("peft_type", *_FIXED):
        if getattr(config, field) != getattr(old, field):
            raise AdapterError(
                f"{field} is {getattr(config, field)} in the new adapter and {getattr(old, field)} in the old one; "
                "load it under a name of its own"
            )
    if any(adapter_name in layer.merged_adapters for _, layer in _layers(tuner.model, adapter_name)):
        raise AdapterError(f"{adapter_name!r} is merged into the model; unmerge it before swapping it")
    for key, tensor in state.items():
        if key not in live:
            raise AdapterError(f"the new adapter has {key}, which the old one does not have")
        # Only the rank may differ: the first dimension of A, the second of B.
        rank = next((i for part, i in _RANKS.items() if f".{part}" in key), None)
        pairs = enumerate(zip(tensor.shape, live[key].shape, strict=True))
        if tensor.dim() != live[key].dim() or any(new != own for i, (new, own) in pairs if i != rank):
            raise AdapterError(f"{key} has another shape: {list(tensor.shape)}, not {list(live[key].shape)}")


_RANKS = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}


def _put(live: torch.Tensor, new: torch.Tensor) -> None:
    """Into the tensor where it is large enough, zeros around it; a larger one takes its place."""
    if any(size > own for size, own in zip(new.shape, live.shape, strict=True)):
        live.data = new.to(live)
        return
    live.zero_()
    live[tuple(slice(size) for size in new.shape)].copy_(new)


@torch.no_grad()
def _enlarge(layer: LoraLayer, name: str, rank: int) -> None:
    """Gives an adapter's factors a larger rank, with zeros."""
    if name not in layer.r or layer.r[name] == rank:
        return
    base: Any = layer.get_base_layer()
    if layer.r[name] > rank:
        raise AdapterError(f"target_rank is {rank}, and the adapter {name!r} has rank {layer.r[name]}")
    if getattr(base, "groups", 1) > 1:
        raise AdapterError(
            "an adapter on a convolution with groups cannot be enlarged; leave out target_rank"
        )
    before = layer.factors(name)
    layer.make_factors(name, rank, before[0].device, before[0].dtype)
    for factor, old in zip(layer.factors(name), before, strict=True):
        factor.zero_()
        factor[: old.shape[0], : old.shape[1]] = old
        factor.requires_grad_(old.requires_grad)
