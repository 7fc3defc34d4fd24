"""Multitask prompt tuning as the engine sees it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from peftcli.adapters.prompt_method import SAVED, PromptMethod, PromptStart, start_as_words, text_tokens
from peftcli.errors import AdapterError
from peftcli.methods.multitask_prompt_tuning.config import (
    FROM_SOURCE,
    MultitaskPromptTuningConfig,
    MultitaskPromptTuningInit,
)
from peftcli.methods.multitask_prompt_tuning.encoder import MultitaskPromptEncoder


class MultitaskPromptTuningMethod(PromptMethod):
    """Multitask prompt tuning."""

    prefix: ClassVar[str] = "multitask_prompt_tuning_"
    in_decoder: ClassVar[bool] = True

    def encoder(self, config: MultitaskPromptTuningConfig, start: PromptStart) -> MultitaskPromptEncoder:
        """Random vectors, the base's embeddings of a text, or what was trained before."""
        assert config.num_virtual_tokens
        assert config.num_transformer_submodules
        assert config.token_dim
        assert config.num_tasks
        assert config.num_ranks
        tokens = config.num_virtual_tokens * config.num_transformer_submodules
        encoder = MultitaskPromptEncoder(tokens, config.token_dim, config.num_tasks, config.num_ranks)
        if start.initialise and config.prompt_tuning_init == MultitaskPromptTuningInit.TEXT:
            start_as_words(encoder, start.words, torch.tensor(text_tokens(config, tokens)))
        elif start.initialise and config.prompt_tuning_init in FROM_SOURCE:
            _start_from_source(encoder, config)
        return encoder


def _start_from_source(encoder: MultitaskPromptEncoder, config: MultitaskPromptTuningConfig) -> None:
    path = config.prompt_tuning_init_state_dict_path or ""
    source = _read(path)
    if config.prompt_tuning_init == MultitaskPromptTuningInit.ONLY_SOURCE_SHARED:
        wanted = {SAVED: encoder.embedding.weight}
    else:
        wanted = encoder.saved()
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name not in source:
                raise AdapterError(f"has no {name}; is it a prompt for several tasks?", where=path)
            value = source[name] if name == SAVED else _task(source[name], config, path)
            if value.shape != tensor.shape:
                raise AdapterError(
                    f"{name} has another shape: {list(value.shape)} in the file, {list(tensor.shape)} here",
                    where=path,
                )
            tensor.copy_(value)


def _task(factors: torch.Tensor, config: MultitaskPromptTuningConfig, path: str) -> torch.Tensor:
    """One task's factors of (K, …), as (1, …): the average, or those of one task."""
    if config.prompt_tuning_init == MultitaskPromptTuningInit.AVERAGE_SOURCE_TASKS:
        return factors.mean(0, keepdim=True)
    task = config.prompt_tuning_init_task or 0
    if task >= len(factors):
        raise AdapterError(
            f"has {len(factors)} tasks; prompt_tuning_init_task {task} is none of them", where=path
        )
    return factors[task : task + 1]


def _read(path: str) -> dict[str, torch.Tensor]:
    if Path(path).suffix != ".safetensors":
        raise AdapterError("prompt_tuning_init_state_dict_path must be a .safetensors file", where=path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"cannot be read: {error}", where=path) from error
