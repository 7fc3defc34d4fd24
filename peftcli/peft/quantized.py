"""What a quantized base needs before adapters on it are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from peftcli.adapters.weights import HALF


def prepare_model_for_kbit_training(
    model: Any,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> Any:
    """The model, frozen, with what is not quantized in float32, and activations checkpointed.

    Args:
        model: one of Transformers.
        use_gradient_checkpointing: whether a quantized model computes activations anew in the backward pass.
        gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`.
        auto_clear_cache: whether memory that casting set free goes back to the device.
    """
    model.requires_grad_(False)
    for parameter in model.parameters():
        # A quantized weight has a class of its own, and holds whatever dtype its storage has.
        if parameter.dtype in HALF and type(parameter) is torch.nn.Parameter:
            parameter.data = parameter.data.float()
    if auto_clear_cache and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if use_gradient_checkpointing and _is_quantized(model):
        options = {"use_reentrant": True, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            # Checkpoints of that kind pass a gradient on only where an input takes one.
            model.enable_input_require_grads()
        model.activation_checkpointing_enable(options)
    return model


def _is_quantized(model: Any) -> bool:
    return any(
        getattr(model, name, False) for name in ("is_loaded_in_8bit", "is_loaded_in_4bit", "is_quantized")
    )
