"""The state of a model's adapters: which there are, which take part, what is merged and what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.weights import quantization_name
from peftcli.errors import AdapterError

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One layer that holds adapters; PEFT's fields.

    Attributes:
        name: from the base model's root; in a PeftModel with `model.` before it.
        module_type: the layer's kind, such as `lora.Linear`.
        enabled: whether adapters act.
        active_adapters: those that take part, whether or not the layer has them.
        merged_adapters: those in the base layer's weight.
        requires_grad: whether each adapter is trained; "irregular" where only a part of it is.
        available_adapters: those that the layer has.
        devices: where each adapter's weights are.
        quantization_backend: how the base layer is quantized, such as `bnb 4bit`.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass
class TunerModelStatus:
    """All layers together; PEFT's fields. A field is "irregular" where layers differ in it, as they should not.

    Attributes:
        base_model_type: the base model's class.
        adapter_model_type: the tuner's class, or "None".
        peft_types: each adapter's method.
        trainable_params: how many numbers are trained.
        total_params: how many there are.
        num_adapter_layers: how many layers hold adapters.
        enabled: whether adapters act.
        active_adapters: those that take part.
        merged_adapters: those in the base's weights.
        requires_grad: whether each adapter is trained.
        available_adapters: those that there are.
        devices: where each adapter's weights are.
        quantization_backend: how the adapted layers are quantized.
    """

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The state of every layer of a PeftModel, or of a model with adapters injected.

    Raises:
        AdapterError: where no layer holds adapters.
    """
    tuner = getattr(model, "base_model", None)
    root = tuner if isinstance(tuner, AdaptedModel) else model
    found = [
        _layer_status(name, module)
        for name, module in root.named_modules()
        if isinstance(module, AdapterLayer | ModulesToSaveWrapper)
    ]
    if not found:
        raise AdapterError("no layer of the model holds an adapter; add one with get_peft_model")
    return found


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The state of a PeftModel's adapters, or of those injected into a model.

    Raises:
        AdapterError: where no layer holds adapters.
    """
    layers = get_layer_status(model)
    trainable, total = count_parameters(model)
    tuner = getattr(model, "base_model", None)
    is_wrapped = isinstance(tuner, AdaptedModel)
    base: Any = tuner.model if isinstance(tuner, AdaptedModel) else model
    configs: Any = tuner.peft_config if isinstance(tuner, AdaptedModel) else {}
    return TunerModelStatus(
        base_model_type=type(base).__name__ if is_wrapped or hasattr(base, "config") else "other",
        adapter_model_type=type(tuner).__name__ if is_wrapped else "None",
        peft_types={name: str(config.peft_type) for name, config in configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=_common(layer.enabled for layer in layers),
        active_adapters=_common(layer.active_adapters for layer in layers),
        merged_adapters=_merged(layers),
        requires_grad={
            name: _common(values)
            for name, values in _by_name(layer.requires_grad for layer in layers).items()
        },
        available_adapters=sorted({name for layer in layers for name in layer.available_adapters}),
        devices={
            name: sorted({device for devices in lists for device in devices})
            for name, lists in _by_name(layer.devices for layer in layers).items()
        },
        quantization_backend=_common(layer.quantization_backend for layer in layers),
    )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers of a model are trained, and how many there are."""
    trainable = everything = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":  # two numbers in a byte
            count *= 2 * parameter.element_size()
        everything += count
        trainable += count if parameter.requires_grad else 0
    return trainable, everything


def _layer_status(name: str, module: AdapterLayer | ModulesToSaveWrapper) -> TunerLayerStatus:
    is_layer = isinstance(module, AdapterLayer)
    tensors = {adapter: list(_tensors(module, adapter)) for adapter in module.adapter_names()}
    return TunerLayerStatus(
        name=name,
        module_type=repr(module).partition("(")[0],
        enabled=not module.disable_adapters,
        active_adapters=list(module.active_adapters),
        merged_adapters=list(module.merged_adapters) if is_layer else [],
        requires_grad={
            adapter: _common(tensor.requires_grad for tensor in own)
            for adapter, own in tensors.items()
            if own
        },
        available_adapters=sorted(module.adapter_names()),
        devices={
            adapter: sorted({tensor.device.type for tensor in own}) for adapter, own in tensors.items() if own
        },
        quantization_backend=quantization_name(module.get_base_layer()) if is_layer else None,
    )


def _tensors(module: AdapterLayer | ModulesToSaveWrapper, adapter_name: str) -> Iterator[torch.Tensor]:
    for _, _, tensor in module.adapter_tensors(adapter_name):
        if isinstance(tensor, nn.Parameter):
            yield tensor


def _common(values: Iterable[Any]) -> Any:
    """The value that all have, or "irregular"."""
    first, *others = values
    return first if all(value == first for value in others) else "irregular"


def _merged(layers: list[TunerLayerStatus]) -> list[str] | Irregular:
    merged = {name for layer in layers for name in layer.merged_adapters}
    partly = any(merged & set(layer.available_adapters) - set(layer.merged_adapters) for layer in layers)
    return "irregular" if partly else sorted(merged)


def _by_name(mappings: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of all mappings, by name."""
    found: dict[str, list[Any]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            found.setdefault(name, []).append(value)
    return found
