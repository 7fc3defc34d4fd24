"""EVA as a library, with PEFT's functions: find the components, and start a model's adapter with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base import Site
from peftcli.adapters.method import AddOptions
from peftcli.adapters.patterns import by_pattern
from peftcli.adapters.targets import find_targets
from peftcli.adapters.walk import stack, walk
from peftcli.adapters.weights import HALF
from peftcli.errors import AdapterError, PeftWarning
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.eva import Eva, Look, find_components, share_out
from peftcli.methods.lora.init_configs import EvaConfig
from peftcli.methods.lora.initial import hand_over
from peftcli.methods.lora.layer import LoraLayer
from peftcli.methods.lora.rows import linear_modules

ModelInputs = Callable[[Any, LoraConfig], Any]
LayerInputs = Callable[[Any, Any, str], torch.Tensor]


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Calls the model with the batch's parts by their names."""
    return model(**inputs)


def prepare_model_inputs_fn_language_modeling(
    model_input: Mapping[str, torch.Tensor], peft_config: LoraConfig
) -> torch.Tensor:
    """The (row, position) pairs that count: no padding, and with `use_label_mask` only those with a label."""
    eva = peft_config.eva_config or EvaConfig()
    ids = model_input["input_ids"]
    mask = model_input.get("attention_mask", torch.ones_like(ids)).bool()
    if eva.use_label_mask and "labels" in model_input:
        mask = mask & (model_input["labels"] != eva.label_mask_value)
    return mask.nonzero()


def prepare_layer_inputs_fn_language_modeling(
    layer_input: Any,
    model_input: torch.Tensor,
    layer_name: str,  # noqa: ARG001  (PEFT's signature)
) -> torch.Tensor:
    """A layer's inputs at these pairs."""
    x: torch.Tensor = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
    return x[model_input.T.unbind()]


def _flat(layer_input: Any) -> torch.Tensor:
    """All of a layer's inputs, one after another."""
    x: torch.Tensor = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
    return x.flatten(0, -2)


@torch.no_grad()
def get_eva_state_dict(  # noqa: PLR0917  (PEFT's signature)
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: ModelInputs | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: LayerInputs
    | Mapping[str, LayerInputs]
    | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,  # noqa: ARG001  (PEFT's signature)
) -> dict[str, torch.Tensor]:
    """The components of each adapted layer's inputs, by the layer's name; as many as its new rank, maybe none.

    Args:
        model: a base model, or a PeftModel, whose adapters are switched off meanwhile.
        dataloader: the batches; gone through again until the components are settled.
        peft_config: the adapter's config; default: the PeftModel's.
        forward_fn: runs the model over a batch.
        prepare_model_inputs_fn: what `prepare_layer_inputs_fn` is to know of a batch; None: the batch itself.
        prepare_layer_inputs_fn: what to look at (N, inputs) of what a layer is given, from that, what the function
            above returned, and the layer's name; one for all layers or one for each; None: everything.
        adapter_name: the PeftModel's adapter.
        gather_distributed_inputs: whether all processes look at all processes' inputs.
        show_progress_bar: has no effect.

    Raises:
        AdapterError: where there is nothing to look at, or layers are named that are not there.
    """
    adapted: Any = model
    is_adapted = hasattr(model, "peft_config")
    config = peft_config or (adapted.peft_config[adapter_name] if is_adapted else None)
    if config is None:
        raise AdapterError("peft_config is needed for a model without adapters")
    modules = _adapted_modules(model, adapter_name) if is_adapted else _modules_named(model, config)
    chosen = prepare_layer_inputs_fn
    if isinstance(chosen, Mapping) and (unknown := sorted(set(chosen) - set(modules))):
        raise AdapterError(f"prepare_layer_inputs_fn: there is no layer {unknown[0]!r} to look at")
    device = _device(model)

    def rows(name: str, args: tuple[Any, ...], told: Any) -> torch.Tensor:
        read = chosen.get(name) if isinstance(chosen, Mapping) else chosen
        x_NI = _flat(args) if read is None else read(args, told, name)
        return _gathered(x_NI) if gather_distributed_inputs else x_NI

    def of_batch(batch: Any) -> Any:
        return batch if prepare_model_inputs_fn is None else prepare_model_inputs_fn(batch, config)

    batches = (_moved(batch, device) for batch in cycle(dataloader))
    with adapted.disable_adapter() if is_adapted else nullcontext():
        return find_components(model, modules, config, batches, Look(forward_fn, of_batch, rows)).components


def _adapted_modules(model: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """The layers with the adapter that EVA can look at."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return {name: layer for name, layer in layers if layer.is_linear and adapter_name in layer.r}


def _modules_named(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The modules of a base model that a config names."""
    return linear_modules(find_targets(model, config, strict=True)[0])


@torch.no_grad()
def initialize_lora_eva_weights(  # noqa: PLR0917  (PEFT's signature)
    model: nn.Module,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, torch.Tensor] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: ModelInputs | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: LayerInputs
    | Mapping[str, LayerInputs]
    | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> None:
    """Starts an adapter of a PeftModel with the components of its layers' inputs, and gives the layers their new ranks.

    Args:
        model: a PeftModel whose config says `init_lora_weights="eva"`.
        dataloader: the batches to look at.
        eva_state_dict: what `get_eva_state_dict` found; default: it is called.
        forward_fn: as there.
        prepare_model_inputs_fn: as there.
        prepare_layer_inputs_fn: as there.
        adapter_name: the adapter.
        gather_distributed_inputs: as there.
        show_progress_bar: as there.

    Raises:
        AdapterError: where the model or its adapter is another one, or there is nothing to look at.
    """
    tuner: Any = getattr(model, "tuner", None)
    if tuner is None:
        raise AdapterError("initialize_lora_eva_weights needs a PeftModel; call get_peft_model before")
    if len(tuner.active_adapters) > 1:
        raise AdapterError("initialize_lora_eva_weights needs a model with one active adapter")
    config = tuner.peft_config[adapter_name]
    if getattr(config, "init_lora_weights", None) != "eva":
        raise AdapterError("initialize_lora_eva_weights is for adapters with init_lora_weights='eva'")
    if eva_state_dict is None:
        if dataloader is None:
            raise AdapterError("initialize_lora_eva_weights needs a dataloader, or an eva_state_dict")
        eva_state_dict = get_eva_state_dict(
            model,
            dataloader,
            None,
            forward_fn,
            prepare_model_inputs_fn,
            prepare_layer_inputs_fn,
            adapter_name,
            gather_distributed_inputs,
            show_progress_bar,
        )
    _start(tuner, adapter_name, config, eva_state_dict)


def _start(
    tuner: Any, adapter_name: str, config: LoraConfig, eva_state_dict: Mapping[str, torch.Tensor]
) -> None:
    found = {name.removeprefix("base_model.model."): A_RI for name, A_RI in eva_state_dict.items()}
    layers = [
        (_named(site, layer), layer)
        for site in list(walk(tuner.model))
        for layer in stack(site.module)
        if isinstance(layer, LoraLayer) and adapter_name in layer.r
    ]
    sites = [site for site, _ in layers]
    names = [site.name for site in sites]
    if unknown := sorted(set(found) - set(names)):
        raise AdapterError(f"eva_state_dict: the adapter {adapter_name!r} is not on {unknown[0]}")
    share_out(config, tuner.model, sites, found)
    for site, layer in layers:
        if site.name in found:
            if not len(found[site.name]):
                tuner.take_off(adapter_name, site)
                continue
            hand_over(layer.get_base_layer(), Eva, found[site.name])
        rank = int(by_pattern(config.rank_pattern, site.name, config.r))
        alpha = by_pattern(config.alpha_pattern, site.name, config.lora_alpha)
        _restart(layer, adapter_name, rank, alpha, config)
    if plain := [name for name in names if name not in found]:
        warnings.warn(
            f"init_lora_weights eva: {len(plain)} layers are not in the eva_state_dict and start as usual (first: "
            f"{plain[0]})",
            PeftWarning,
            stacklevel=3,
        )


def _named(site: Site, layer: LoraLayer) -> Site:
    """The site of the parameter that the layer is for, where it is for one."""
    if not layer.parameter:
        return site
    return site._replace(name=f"{site.name}.{layer.parameter}", parameter=layer.parameter)


def _restart(layer: LoraLayer, name: str, rank: int, lora_alpha: float, config: LoraConfig) -> None:
    """Makes a layer's adapter anew; the old one may have had no memory yet."""
    before = layer.factors(name)[0]
    layer.add(name, rank, lora_alpha, config, AddOptions(autocast_adapter_dtype=before.dtype not in HALF))
    layer.train(layer.training)
    layer.set_requires_grad([name], before.requires_grad)


def _device(model: nn.Module) -> torch.device | None:
    """Where the model is, but for what has no memory yet; None where it is in several places."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type != "meta"}
    return devices.pop() if len(devices) == 1 else None


def _moved(batch: Any, device: torch.device | None) -> Any:
    if device is None:
        return batch
    if isinstance(batch, Mapping):
        return {name: _moved(part, device) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(part, device) for part in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def _gathered(x_NI: torch.Tensor) -> torch.Tensor:
    """The inputs of all processes, where there are several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x_NI
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, x_NI.cpu())
    return torch.cat(parts).to(x_NI.device)
