"""The base model's own state, by the keys that it has without adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.tokens import TrainableTokensWrapper
from peftcli.errors import AdapterError
from peftcli.peft.storage import LoadResult, base_of

# What adapters put around a module, and where in it the module is.
_PARTS: dict[type[nn.Module], str] = {
    AdapterLayer: "base_layer",
    ModulesToSaveWrapper: "original_module",
    TrainableTokensWrapper: "token_adapter",
}


def get_base_model_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base model's tensors, by the keys that they have without adapters; they share memory with the model.

    Args:
        model: a PeftModel, or a model with adapters injected.
    """
    base, _ = base_of(model)
    keys = _keys(base)
    return {keys[key]: tensor for key, tensor in base.state_dict().items() if key in keys}


def set_base_model_state_dict(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], strict: bool = True
) -> LoadResult:
    """Copies tensors, by the keys that they have without adapters, into the base model.

    Args:
        model: a PeftModel, or a model with adapters injected.
        state_dict: the tensors.
        strict: whether all of the base's must be there, and no others.

    Returns:
        The keys that are missing, and those that the base does not have.

    Raises:
        AdapterError: where keys are missing or too many, and `strict`.
    """
    base, _ = base_of(model)
    live = {original: key for key, original in _keys(base).items()}
    missing = [key for key in live if key not in state_dict]
    unexpected = [key for key in state_dict if key not in live]
    if strict and (missing or unexpected):
        lists = (("misses", missing), ("has, and the base has not,", unexpected))
        raise AdapterError(
            "; ".join(f"the state dict {verb} {', '.join(keys)}" for verb, keys in lists if keys)
        )
    base.load_state_dict({live[key]: state_dict[key] for key in live if key in state_dict}, strict=False)
    return LoadResult(missing, unexpected)


def _keys(base: nn.Module) -> dict[str, str]:
    """The base's keys: as they are with adapters, to what they are without."""
    inner = {
        name: part
        for name, module in base.named_modules(remove_duplicate=False)
        for kind, part in _PARTS.items()
        if isinstance(module, kind)
    }
    originals = {key: _original(key, inner) for key in base.state_dict()}
    return {key: original for key, original in originals.items() if original}


def _original(key: str, inner: Mapping[str, str]) -> str:
    """A key without the parts that adapters put into it; empty where it is an adapter's."""
    kept, path = [], ""
    for part in key.split("."):
        if path not in inner:
            kept.append(part)
        elif part != inner[path]:
            return ""
        path = f"{path}.{part}".lstrip(".")
    return ".".join(kept)
