"""What of a model belongs to an adapter's file: keys as PEFT writes them, and the live tensors behind them.

One table serves both ways, so what is saved is what is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.config import PeftConfig
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.tokens import TrainableTokensWrapper
from peftcli.adapters.walk import stack, walk
from peftcli.errors import AdapterError, PeftWarning, nearest

# Layers whose whole weight is saved as well where an adapter names them, as PEFT does: they may have been resized.
EMBEDDINGS = ("embed_tokens", "lm_head")


class AdapterState(NamedTuple):
    """The live tensors that an adapter's file must hold, by their key in it."""

    # The adapter's own, which may have a dtype of their own.
    own: dict[str, torch.Tensor]
    # Modules that are saved whole, and biases: they compute in the base's dtype.
    whole: dict[str, torch.Tensor]
    # Other keys of tensors that are among its own: what modules have in common is written once.
    again: dict[str, torch.Tensor]

    def all(self) -> dict[str, torch.Tensor]:
        """What the file holds."""
        return self.own | self.whole


def adapter_state(model: nn.Module, adapter_name: str, config: PeftConfig, prefix: str = "") -> AdapterState:
    """What an adapter's file must hold.

    Args:
        model: the base model with adapters on it.
        adapter_name: which adapter.
        config: its config.
        prefix: what keys begin with (`base_model.model.` in PEFT's files).
    """
    state = AdapterState({}, {}, {})
    mode = getattr(config, "bias", "none")
    if mode == "all" and (own := _bias(model)) is not None:
        state.whole[f"{prefix}bias"] = own
    for site in walk(model, repeated=True):
        key = prefix + site.name
        if isinstance(site.module, AdapterLayer):
            inner = _add_layers(state, site.module, adapter_name, key)
            bias = _bias(site.module.get_base_layer())
            if mode != "none" and bias is not None:
                state.whole[f"{inner}.bias"] = bias
        elif isinstance(site.module, ModulesToSaveWrapper):
            for saved, _, tensor in site.module.adapter_tensors(adapter_name):
                state.whole[f"{key}.{saved}"] = tensor
        elif isinstance(site.module, TrainableTokensWrapper):
            _add_tokens(state, site.module, adapter_name, key)
            if mode == "all" and (bias := _bias(site.module.original_module)) is not None:
                state.whole[f"{key}.token_adapter.base_layer.bias"] = bias
        elif mode == "all" and (bias := _bias(site.module)) is not None:
            state.whole[f"{key}.bias"] = bias
    return state


def _add_layers(state: AdapterState, module: AdapterLayer, adapter_name: str, key: str) -> str:
    """The tensors of all layers on a module; returns the key of the module inside them.

    In a file, an adapter's layers lie around one another only where each is on another parameter.
    """
    inner = key
    for layer in stack(module):
        tensors = list(layer.adapter_tensors(adapter_name))
        state.own.update({f"{inner}.{saved}": tensor for saved, _, tensor in tensors})
        if layer.parameter and tensors:
            inner += ".base_layer"
    return f"{key}.base_layer" if inner == key else inner


def _add_tokens(state: AdapterState, wrapper: TrainableTokensWrapper, adapter_name: str, key: str) -> None:
    """The rows of single tokens, under the name of the layer whose they are, or of a module's first name."""
    layer = wrapper.token_adapter
    for saved, _, tensor in layer.adapter_tensors(adapter_name):
        is_written = adapter_name in layer.leaders or any(tensor is other for other in state.own.values())
        (state.again if is_written else state.own)[f"{key}.token_adapter.{saved}"] = tensor


def embedding_layers(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The input embeddings and the output head, None where the model has none or does not tell."""
    return _told(model, "get_input_embeddings"), _told(model, "get_output_embeddings")


def _told(model: Any, method: str) -> nn.Module | None:
    try:
        layer: nn.Module | None = getattr(model, method)()
    except (AttributeError, NotImplementedError):  # no model of Transformers, or one that holds several
        return None
    return layer


def embedding_state(model: nn.Module, prefix: str = "", *, adapted_only: bool) -> dict[str, torch.Tensor]:
    """The whole weights of the input and output embeddings; `adapted_only`: of those that have an adapter."""
    layers = [layer for layer in embedding_layers(model) if layer is not None]
    state: dict[str, torch.Tensor] = {}
    for site in walk(model):
        adapted = isinstance(site.module, AdapterLayer)
        if any(site.module is layer for layer in layers) and (adapted or not adapted_only):
            key, base = f"{prefix}{site.name}", site.module
            if isinstance(base, TrainableTokensWrapper):
                key, base = f"{key}.token_adapter", base.token_adapter
            if isinstance(base, AdapterLayer):
                key, base = f"{key}.base_layer", base.get_base_layer()
            state |= {f"{key}.{name}": tensor for name, tensor in base.state_dict(keep_vars=True).items()}
    return state


def embeddings_are_targeted(model: nn.Module, config: Any) -> bool:
    """PEFT's rule for saving whole embeddings beside the adapter: `target_modules` names them."""
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str):
        names = (site.name for site in walk(model) if isinstance(site.module, AdapterLayer))
        return any(name.rpartition(".")[2] in EMBEDDINGS for name in names)
    return any(name in (targets or ()) for name in EMBEDDINGS)


def load_state(
    state: Mapping[str, torch.Tensor],
    expected: AdapterState,
    optional: Mapping[str, torch.Tensor],
    *,
    keep_dtype: bool,
    assign: bool = False,
    ignore_mismatched_sizes: bool = False,
    where: str = "",
) -> list[str]:
    """Copies a file's tensors into the live ones. All or nothing: every key is checked first.

    Args:
        state: the file's content.
        expected: the live tensors that it must hold.
        optional: live tensors that it may hold.
        keep_dtype: whether adapter weights take the file's dtype; else the file's values are converted.
        assign: use the file's tensors themselves where they need no conversion, instead of copying them.
        ignore_mismatched_sizes: leave out tensors of another shape, with a warning.
        where: the file, for messages.

    Returns:
        The keys that were left out.

    Raises:
        AdapterError: for a key that is missing, unknown or misshapen, and for values that are not numbers.
    """
    wanted = expected.all()
    targets = {**optional, **expected.again, **wanted}
    unknown = [key for key in state if key not in targets and not _is_leftover(key)]
    # A tensor that has several keys is there where one of them is.
    given = {id(tensor) for key, tensor in targets.items() if key in state}
    missing = [key for key, tensor in wanted.items() if id(tensor) not in given]
    if missing:
        raise AdapterError(f"has no {_list(missing)}{_hint(missing[0], unknown)}", where=where)
    if unknown:
        known = [key for key in targets if key not in state]
        raise AdapterError(
            f"holds {_list(unknown)}, which this model does not have{_hint(unknown[0], known or list(wanted))}",
            where=where,
        )
    misfits = [key for key, tensor in state.items() if key in targets and tensor.shape != targets[key].shape]
    for key in misfits:
        shapes = f"{list(state[key].shape)} in the file, {list(targets[key].shape)} in the model"
        message = f"{key} has another shape: {shapes}"
        if not ignore_mismatched_sizes:
            raise AdapterError(f"{message}; is it an adapter for this base model?", where=where)
        warnings.warn(f"{message}; it is left as it is", PeftWarning, stacklevel=2)
    for key, tensor in state.items():
        if key in targets and not _is_of_kind(tensor, targets[key]):
            types = f"{tensor.dtype} in the file, {targets[key].dtype} in the model"
            raise AdapterError(f"{key} has numbers of another kind: {types}", where=where)
        _check(key, tensor, where)
    with torch.no_grad():
        for key in state.keys() & targets.keys() - set(misfits):
            live = targets[key]
            # Nothing can be computed in the types of one byte.
            keeps = (
                keep_dtype and key in expected.own and live.is_floating_point() and state[key].itemsize > 1
            )
            dtype = state[key].dtype if keeps else live.dtype
            if assign or dtype != live.dtype:
                live.data = state[key].to(live.device, dtype, copy=not assign)
            else:
                live.copy_(state[key])
    return misfits


def _is_of_kind(tensor: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether both hold real numbers, or both whole ones; PEFT saves whole ones with a point on Windows."""
    if target.is_floating_point() or not tensor.is_floating_point():
        return tensor.is_floating_point() == target.is_floating_point()
    bounds = torch.iinfo(target.dtype)
    whole = tensor.double()
    return bool(((whole == whole.round()) & (whole >= bounds.min) & (whole <= bounds.max)).all())


def _check(key: str, tensor: torch.Tensor, where: str) -> None:
    if tensor.is_floating_point() and not _is_finite(tensor):
        raise AdapterError(f"{key} holds values that are not finite; the adapter is broken", where=where)


def _is_finite(tensor: torch.Tensor) -> bool:
    """A sum takes a fraction of the time, and is finite only where all are; but it can overflow."""
    if tensor.dtype.itemsize == 1:
        # Types of one byte have neither operation.
        tensor = tensor.float()
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, nn.Parameter) else None


def _is_leftover(key: str) -> bool:
    """PEFT, told to train all biases or to save resized embeddings, also writes keys that it never reads."""
    inside, _, name = key.rpartition(".")
    return inside.endswith((".original_module", ".modules_to_save")) and name in ("weight", "bias")


def _list(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"


def _hint(key: str, others: list[str]) -> str:
    close = nearest(key, others[:2000], limit=1)
    return f"; the nearest key is {close[0]}" if close else ""
