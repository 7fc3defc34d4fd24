"""Another adapter's file in the place of an adapter that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.adapters.engine import AdaptedModel
from peftcli.hub import HubOptions
from peftcli.peft.storage import PREFIX, load_peft_weights


def hotswap_adapter(
    model: nn.Module,
    model_name_or_path: str | Path,
    adapter_name: str,
    torch_device: str | torch.device | None = None,
    subfolder: str | None = None,
    **hub: Unpack[HubOptions],
) -> None:
    """Puts an adapter's weights in the place of one in the model, whose name stays; no module is made or replaced.

    Args:
        model: a PeftModel, compiled or not, or a model with adapters injected.
        model_name_or_path: the new adapter's folder, or its repository on the Hub.
        adapter_name: the adapter to replace.
        torch_device: where its weights are read to.
        subfolder: a folder in it.
        **hub: how to fetch from the Hub.

    Raises:
        AdapterError: where the two are not for the same layers, or the method cannot.
        HubError: where the Hub cannot be reached.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    tuner = getattr(inner, "base_model", None)
    if not isinstance(tuner, AdaptedModel):
        tuner = AdaptedModel.around(inner)
    config = PeftConfig.from_pretrained(model_name_or_path, subfolder, **hub)
    weights = load_peft_weights(model_name_or_path, torch_device, None, subfolder, **hub)
    method = tuner.method_of(adapter_name)
    config.inference_mode = tuner.peft_config[adapter_name].inference_mode
    state = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    method.swap(tuner, adapter_name, state, config)
    if tuner is not getattr(inner, "base_model", None):
        inner.peft_config = tuner.peft_config
