"""An adapter's two files, both ways: adapter_config.json and adapter_model.safetensors, as PEFT has them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from peftcli.adapters.config import CONFIG_NAME, PREFIX, WEIGHTS_NAME, PeftConfig
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.heads import check_head
from peftcli.adapters.meta import materialise
from peftcli.adapters.prompted import PromptedModel, is_prompted
from peftcli.adapters.state import adapter_state, embedding_state, embeddings_are_targeted, load_state
from peftcli.errors import AdapterError, HubError
from peftcli.files import write_tensors
from peftcli.hub import HubOptions, fetch
from peftcli.peft.trainer import apart

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")

SaveEmbeddings = bool | Literal["auto"]


class LoadResult(NamedTuple):
    """What PEFT's functions return; every key was checked, so only those that were to be left out are missing."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_config(folder: str | Path) -> PeftConfig:
    """The config of the adapter in a folder, as its method's own class."""
    return PeftConfig.from_pretrained(folder)


def check_if_peft_model(model_name_or_path: str | Path) -> bool:
    """Whether a folder or a repository of the Hub holds an adapter that can be read here."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (AdapterError, HubError):
        return False
    return True


def load_peft_weights(
    model_id: str | Path,
    device: str | torch.device | None = None,
    key_mapping: Mapping[str, str] | None = None,
    subfolder: str | None = None,
    **hub: Unpack[HubOptions],
) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in a folder, or in a repository of the Hub.

    Args:
        model_id: the folder or the repository.
        device: where to put them; default: the CPU.
        key_mapping: regular expressions and what to put in their place: the first that fits a key (without its
            `base_model.model.`) renames it.
        subfolder: a folder in it.
        **hub: how to fetch from the Hub.

    Raises:
        AdapterError: where there are none, or in a format that can run code, or damaged.
        HubError: where the Hub cannot be reached, or asks for a token.
    """
    folder = Path(model_id, subfolder or "")
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles and not (folder / WEIGHTS_NAME).is_file():
        raise AdapterError(
            f"{pickles[0]} is a pickle, which can run code when it is read; convert it to {WEIGHTS_NAME}",
            where=str(folder),
        )
    path = fetch(model_id, WEIGHTS_NAME, subfolder, **hub)
    try:
        check_head(path)
        state = load_file(path, device="cpu" if device is None else str(device))
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"is damaged or no safetensors file ({error}); get it again", where=str(path)
        ) from error
    return {_renamed(key, key_mapping): tensor for key, tensor in state.items()} if key_mapping else state


def _renamed(key: str, mapping: Mapping[str, str]) -> str:
    prefix = next(start for start in (PREFIX, "base_model.", "") if key.startswith(start))
    bare = key.removeprefix(prefix)
    for pattern, replacement in mapping.items():
        changed, count = re.subn(pattern, replacement, bare)
        if count:
            return prefix + changed
    return key


def save_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes the tensors, whole or not at all; tensors that share memory are written apart."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: state[key].detach().cpu().contiguous() for key in sorted(state)}
    write_tensors(folder / WEIGHTS_NAME, apart(tensors))


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: SaveEmbeddings = "auto",
) -> dict[str, torch.Tensor]:
    """An adapter's tensors with the keys of its file, sharing memory with the model.

    Args:
        model: a PeftModel, or a model with adapters injected.
        state_dict: a state dict of the whole model, to take the tensors from; default: the model's own.
        adapter_name: which adapter.
        unwrap_compiled: whether the model is what `torch.compile` returned.
        save_embedding_layers: whether whole embeddings are among them; "auto": where they are adapted, or where
            their size is not the base model's.
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    base, prefix = base_of(model)
    config = _config(model, adapter_name)
    state = {**adapter_state(base, adapter_name, config, prefix).all(), **_shared_state(model, adapter_name)}
    # What trains some of their rows spares the others.
    targeted = embeddings_are_targeted(base, config) and not config.trains_tokens
    if save_embedding_layers == "auto":
        save_embedding_layers = targeted or _is_resized(base, config)
    if save_embedding_layers:
        state |= embedding_state(base, prefix, adapted_only=targeted)
    if state_dict is not None:
        state = _taken_from(state_dict, model, state)
    state = {key: tensor.detach() for key, tensor in state.items()}
    tuner = _tuner(model, prefix)
    if isinstance(tuner, AdaptedModel):
        state = tuner.method_of(adapter_name).packed(state, config, prefix)
    return state


def _taken_from(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """For an adapter's keys the tensors that a state dict of the model has for them."""
    live = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in live.items()}
    # What is made for the file, as by a prompt's network, is in no state dict.
    wanted = {key: names[id(tensor)] for key, tensor in state.items() if id(tensor) in names}
    missing = [name for name in wanted.values() if name not in state_dict]
    if missing:
        raise AdapterError(f"state_dict has no {missing[0]}; give the state of the whole model")
    return {key: state_dict[wanted[key]] if key in wanted else tensor for key, tensor in state.items()}


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, torch.Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
    *,
    keep_dtype: bool = False,
    where: str = "",
) -> LoadResult:
    """Puts an adapter's tensors, with the keys of its file, into the model. Every key is checked first.

    Args:
        model: a PeftModel, or a model with adapters injected.
        peft_model_state_dict: the tensors.
        adapter_name: which adapter they are for.
        ignore_mismatched_sizes: leave out tensors of another shape, with a warning.
        low_cpu_mem_usage: use these tensors themselves where they need no conversion, instead of copying them;
            the adapter may be on the meta device.
        keep_dtype: let the adapter's weights take these tensors' dtype; default: they keep their own.
        where: the tensors' file, for messages.

    Raises:
        AdapterError: for a key that is missing, unknown or misshapen, and for values that are not finite.
    """
    base, prefix = base_of(model)
    config = _config(model, adapter_name)
    state = dict(peft_model_state_dict)
    materialise(base, adapter_name)
    if not prefix:
        state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    tuner = _tuner(model, prefix)
    if isinstance(tuner, AdaptedModel):
        state = tuner.method_of(adapter_name).unpacked(state, config, prefix)
    expected = adapter_state(base, adapter_name, config, prefix)
    shared = _shared_state(model, adapter_name)
    expected.own.update(shared)
    optional = embedding_state(base, prefix, adapted_only=False)
    left = load_state(
        state,
        expected,
        optional,
        keep_dtype=keep_dtype,
        assign=low_cpu_mem_usage,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        where=where,
    )
    if isinstance(tuner, PromptedModel):
        tuner.take(adapter_name, shared)
    return LoadResult(left, [])


def base_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The base model with adapters on it, and what its keys begin with."""
    get_base_model = getattr(model, "get_base_model", None)
    if get_base_model is None:
        return model, ""
    return get_base_model(), "base_model." if is_prompted(model) else PREFIX


def _tuner(model: nn.Module, prefix: str) -> Any:
    """The engine of a PeftModel, or one for a model with adapters injected."""
    return getattr(model, "tuner", None) if prefix else AdaptedModel.around(model)


def _shared_state(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """What the file holds beside layers: what they share, or a prompt; in a bare model with adapters there is none."""
    tuner = getattr(model, "tuner", None)
    if isinstance(tuner, PromptedModel):
        return tuner.saved_tensors(adapter_name)
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
    "base_of",
    "check_if_peft_model",
    "get_peft_model_state_dict",
    "load_peft_weights",
    "read_config",
    "save_weights",
    "set_peft_model_state_dict",
]
