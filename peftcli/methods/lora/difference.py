"""From an adapter that changed its base when it started (PiSSA, OLoRA) to a plain one for the base as it was.

With W = W' + s B₀ A₀ at the start and W' + s B A after training, W + s [B, -B₀] [A; A₀] is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from peftcli.adapters.state import adapter_state
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig

_A, _B = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


def since(
    state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], config: LoraConfig
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """The plain adapter's tensors and config: twice the rank, and the same scaling.

    Raises:
        AdapterError: where the two are not the same adapter, or have what is no difference.
    """
    if config.use_dora:
        raise AdapterError("an adapter with DoRA is no sum; it cannot be converted")
    if config.target_parameters:
        raise AdapterError("an adapter on parameters (target_parameters) cannot be converted")
    # The scaling is alpha / r, or alpha / sqrt(r): doubling r, it stays if alpha grows with that.
    grown = math.sqrt(2) if config.use_rslora else 2
    converted = dataclasses.replace(
        config,
        init_lora_weights=True,
        corda_config=None,
        lora_ga_config=None,
        r=2 * config.r,
        lora_alpha=grown * config.lora_alpha,
        rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
        alpha_pattern={key: grown * alpha for key, alpha in config.alpha_pattern.items()},
    )
    return {**state, **stacked(state, initial)}, converted


def stacked(
    state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """[A; A₀] and [B, -B₀] for all factors."""
    result = {}
    for key, tensor in state.items():
        part = next((part for part in key.split(".") if part in (*_A, *_B)), "")
        if not part:
            continue
        if key not in initial or initial[key].shape != tensor.shape:
            raise AdapterError(f"the initial adapter is another one: it has no {key} of this shape")
        start = initial[key].to(tensor)
        result[key] = torch.cat([tensor, start], 0) if part in _A else torch.cat([tensor, -start], 1)
    return result


def parted(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors after training and before it, of an adapter that `since` made."""
    trained, initial = dict(state), {}
    for key, tensor in state.items():
        part = next((part for part in key.split(".") if part in (*_A, *_B)), "")
        if part in _A:
            trained[key], initial[key] = tensor.chunk(2, 0)
        elif part in _B:
            trained[key], minus = tensor.chunk(2, 1)
            initial[key] = -minus
    return trained, initial


def subtract_mutated_init(
    tuner: Any,
    output_state_dict: Mapping[str, torch.Tensor],
    adapter_name: str,
    kwargs: Mapping[str, Any] | None = None,  # noqa: ARG001  (PEFT's; it holds nothing that is used here)
) -> dict[str, torch.Tensor]:
    """The factors of a trained adapter's difference to another one of the model, which has its initial values."""
    config = tuner.peft_config[adapter_name]
    initial = adapter_state(tuner.model, adapter_name, config, "base_model.model.").own
    return stacked(output_state_dict, initial)
