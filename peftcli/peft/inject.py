"""Adapters put into a model that stays what it is: no PeftModel around it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.method import AddOptions, Method
from peftcli.errors import AdapterError
from peftcli.peft.storage import PREFIX
from peftcli.registry import ENGINES, resolve


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """The model itself with a new adapter in it, and its config in `model.peft_config`.

    Args:
        peft_config: the adapter's config.
        model: the base model; it may have adapters of the method already.
        adapter_name: a name that is new.
        low_cpu_mem_usage: leave the adapter on the meta device, until weights are loaded into it.
        state_dict: an adapter's tensors, of which only the keys are read: they say which layers to adapt, in place
            of the config's `target_modules`.

    Raises:
        AdapterError: where the config does not fit the model, or the method's layers share something, for which
            there is no place in a bare model.
    """
    if peft_config.is_prompt_learning:
        raise AdapterError(f"{peft_config.peft_type} acts on a model's inputs; use get_peft_model")
    method: Method = resolve(ENGINES, str(peft_config.peft_type), what="peft_type")()
    if method.shared:
        raise AdapterError(f"{peft_config.peft_type} shares weights among layers; use get_peft_model")
    if state_dict is not None:
        if getattr(peft_config, "target_parameters", None):
            raise AdapterError(
                "target_parameters: keys do not say which parameter they are for; leave out state_dict"
            )
        peft_config = _with_targets(peft_config, targets_of(state_dict, method.prefix))
    tuner = AdaptedModel.around(model)
    options = AddOptions(initialise=not low_cpu_mem_usage, low_cpu_mem_usage=low_cpu_mem_usage)
    tuner.attach(adapter_name, peft_config, options=options)
    model.peft_config = tuner.peft_config  # type: ignore[assignment]  # a plain attribute
    return model


def targets_of(keys: Iterable[str], prefix: str) -> list[str]:
    """The modules that an adapter's keys belong to; `prefix` is what its method's parameters begin with."""
    found = {key.removeprefix(PREFIX).partition(f".{prefix}")[0] for key in keys if f".{prefix}" in key}
    if not found:
        raise AdapterError(f"no key of the state dict has {prefix!r} in it; is it another method's?")
    return sorted(found)


def _with_targets(config: Any, targets: list[str]) -> Any:
    config = copy.deepcopy(config)
    config.target_modules, config.exclude_modules = targets, None
    if hasattr(config, "layers_to_transform"):
        config.layers_to_transform = config.layers_pattern = None
    return config
