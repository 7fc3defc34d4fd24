"""An adapter's two files, both ways: adapter_config.json and adapter_model.safetensors, as PEFT has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from peftcli.adapters.config import CONFIG_NAME, PeftConfig
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.state import adapter_state, embedding_state, embeddings_are_targeted, load_state
from peftcli.errors import AdapterError
from peftcli.files import write_tensors

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")

SaveEmbeddings = bool | Literal["auto"]


class LoadResult(NamedTuple):
    """What PEFT's functions return; every key was checked, so both are empty."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_config(folder: str | Path) -> PeftConfig:
    """The config of the adapter in a folder, as its method's own class."""
    return PeftConfig.from_pretrained(folder)


def load_peft_weights(folder: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of the adapter in a folder.

    Raises:
        AdapterError: where there are none, or in a format that can run code, or damaged.
    """
    path = Path(folder, WEIGHTS_NAME)
    if not path.is_file():
        pickles = [name for name in _PICKLES if Path(folder, name).is_file()]
        if pickles:
            raise AdapterError(
                f"{pickles[0]} is a pickle, which can run code when it is read; convert it to {WEIGHTS_NAME}",
                where=str(folder),
            )
        raise AdapterError(
            f"there is no {WEIGHTS_NAME} here; name a folder with an adapter", where=str(folder)
        )
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"is damaged or no safetensors file ({error}); get it again", where=str(path)
        ) from error


def save_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes the tensors, whole or not at all; tensors that share memory are written apart."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: state[key].detach().cpu().contiguous() for key in sorted(state)}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    write_tensors(folder / WEIGHTS_NAME, tensors)


def get_peft_model_state_dict(
    model: nn.Module, adapter_name: str = "default", save_embedding_layers: SaveEmbeddings = "auto"
) -> dict[str, torch.Tensor]:
    """An adapter's tensors with the keys of its file, sharing memory with the model.

    Args:
        model: a PeftModel, or a model with adapters injected.
        adapter_name: which adapter.
        save_embedding_layers: whether whole embeddings are among them; "auto": where they are adapted, or where
            their size is not the base model's.
    """
    base, prefix = _base(model)
    config = _config(model, adapter_name)
    state = {**adapter_state(base, adapter_name, config, prefix).all(), **_shared_state(model, adapter_name)}
    targeted = embeddings_are_targeted(base, config)
    if save_embedding_layers == "auto":
        save_embedding_layers = targeted or _is_resized(base, config)
    if save_embedding_layers:
        state |= embedding_state(base, prefix, adapted_only=targeted)
    return {key: tensor.detach() for key, tensor in state.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, torch.Tensor],
    adapter_name: str = "default",
    *,
    keep_dtype: bool = False,
    where: str = "",
) -> LoadResult:
    """Copies an adapter's tensors, with the keys of its file, into the model. Every key is checked first.

    Raises:
        AdapterError: for a key that is missing, unknown or misshapen, and for values that are not finite.
    """
    base, prefix = _base(model)
    config = _config(model, adapter_name)
    state = dict(peft_model_state_dict)
    if not prefix:
        state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    expected = adapter_state(base, adapter_name, config, prefix)
    expected.own.update(_shared_state(model, adapter_name))
    optional = embedding_state(base, prefix, adapted_only=False)
    load_state(state, expected, optional, keep_dtype=keep_dtype, where=where)
    return LoadResult([], [])


def _base(model: nn.Module) -> tuple[nn.Module, str]:
    """The base model with adapters on it, and what its keys begin with."""
    get_base_model = getattr(model, "get_base_model", None)
    return (get_base_model(), PREFIX) if get_base_model else (model, "")


def _shared_state(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """What the adapter's layers share and its file holds; in a bare model with adapters in it there is none."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, AdaptedModel):
        return {}
    return {f"base_model.{key}": tensor for key, tensor in tuner.shared_tensors(adapter_name).items()}


def _config(model: nn.Module, adapter_name: str) -> PeftConfig:
    configs: Any = getattr(model, "peft_config", {})
    if adapter_name not in configs:
        raise AdapterError(
            f"there is no adapter {adapter_name!r}; the model has: {', '.join(configs) or 'none'}"
        )
    config: PeftConfig = configs[adapter_name]
    return config


def _is_resized(model: nn.Module, config: PeftConfig) -> bool:
    """Whether the model's vocabulary is not the one in its base's own config, as far as that is at hand."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    original = _base_config(config.base_model_name_or_path)
    before = original.get("vocab_size") or (original.get("text_config") or {}).get("vocab_size")
    return isinstance(size, int) and isinstance(before, int) and size != before


def _base_config(name: str | None) -> dict[str, Any]:
    """The base's config.json: in its folder, or in the Hub's cache; the network is not asked."""
    if not name:
        return {}
    path = Path(name, "config.json")
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError:
            return {}
        if not isinstance(cached, str | os.PathLike):
            return {}
        path = Path(cached)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


__all__ = [
    "CONFIG_NAME",
    "PREFIX",
    "WEIGHTS_NAME",
    "LoadResult",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "read_config",
    "save_weights",
    "set_peft_model_state_dict",
]
