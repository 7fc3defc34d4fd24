"""LoftQ on a base that is quantized already: A and B start with what its rounding lost of the published weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from peftcli.adapters.walk import stack, walk
from peftcli.adapters.weights import base_weight, is_quantized
from peftcli.errors import AdapterError
from peftcli.methods.lora.layer import LoraLayer
from peftcli.methods.lora.loftq import fitted, put


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: nn.Module,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[[nn.Module, str], bool] | None = None,
) -> None:
    """Starts an adapter on a quantized base with LoftQ: base and adapter together come near the base as published.

    Args:
        peft_model: a PeftModel on a base that was quantized when it was loaded.
        model_path: the published base: a folder, or a safetensors file; default: where the model was loaded from.
        adapter_name: the adapter.
        callback: called after each layer with the model and the layer's name; where it returns false, the layer gets
            its weights back.

    Raises:
        AdapterError: where no adapted layer is quantized, or the published weights are not at hand.
    """
    tuner: Any = getattr(peft_model, "tuner", None)
    base = peft_model if tuner is None else tuner.model
    layers = [
        (site.name, layer)
        for site in walk(base)
        for layer in stack(site.module)
        if isinstance(layer, LoraLayer) and adapter_name in layer.r and is_quantized(layer.get_base_layer())
    ]
    if not layers:
        raise AdapterError(
            f"no layer with the adapter {adapter_name!r} is quantized; load the base in 4 bits"
        )
    published = _Published(model_path or _origin(base), str(getattr(base, "base_model_prefix", "")))
    for name, layer in layers:
        rounded_OI = base_weight(layer.get_base_layer()).float()
        W_OI = published.weight(name).to(rounded_OI)
        if W_OI.shape != rounded_OI.shape:  # a Conv1D, which is quantized as a linear layer
            W_OI = W_OI.T
        before = [factor.clone() for factor in layer.factors(adapter_name)]
        put(layer, adapter_name, *fitted(W_OI - rounded_OI, layer.r[adapter_name]))
        if callback is not None and not callback(peft_model, name):
            for factor, values in zip(layer.factors(adapter_name), before, strict=True):
                factor.copy_(values)


def _origin(base: Any) -> str:
    name: str | None = getattr(getattr(base, "config", None), "_name_or_path", None)
    if not name:
        raise AdapterError("the model does not say where it was loaded from; give model_path")
    return name


class _Published:
    """The tensors of safetensors files, one at a time."""

    def __init__(self, path: str | Path, prefix: str) -> None:
        self.where, self.prefix = str(path), prefix
        self.files: dict[str, Path] = {}
        found = Path(path) if Path(path).exists() else _cached(str(path))
        for file in [found] if found.is_file() else sorted(found.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as opened:
                    self.files |= dict.fromkeys(opened.keys(), file)
            except SafetensorError as error:
                raise AdapterError(f"is no safetensors file: {error}", where=str(file)) from error
        if not self.files:
            raise AdapterError(
                "holds no .safetensors file; name the folder of the published base", where=self.where
            )

    def weight(self, name: str) -> torch.Tensor:
        """A layer's; a file of the model without its head names it without the prefix."""
        keys = [f"{name}.weight", f"{name.removeprefix(f'{self.prefix}.')}.weight"]
        key = next((key for key in keys if key in self.files), None)
        if key is None:
            raise AdapterError(f"has no {keys[0]}; is it another model?", where=self.where)
        with safe_open(self.files[key], framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(key)
        return tensor


def _cached(name: str) -> Path:
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise AdapterError(
            "is neither a folder nor in this machine's cache; give model_path", where=name
        ) from None
