"""What layers are told of a call of the model: which adapter each row has (`adapter_names`), or none (`__base__`).

Layers are told by hooks, for as long as a call of the model lasts: nothing is kept on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.config import PeftConfig
from peftcli.adapters.method import Call
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.errors import AdapterError, did_you_mean

BASE = "__base__"


def called(tuner: Any, adapter_names: Sequence[str] | None, call: Call) -> AbstractContextManager[object]:
    """Tells the tuner's layers what they must know of a call of the model, which mostly is nothing.

    Raises:
        AdapterError: where `adapter_names` cannot be followed.
    """
    known: Mapping[str, PeftConfig] = tuner.peft_config
    names = tuner.active_adapters if adapter_names is None else dict.fromkeys(adapter_names)
    reading = [name for name in names if name in known and known[name].reads_inputs]
    if tuner.disabled:
        reading = []
    if adapter_names is None and not reading:
        return nullcontext()
    with ExitStack() as hooks:
        if adapter_names is not None:
            if tuner.model.training:
                raise AdapterError("adapter_names: only for inference; call eval() before")
            hooks.enter_context(_mixed(tuner.layers(), adapter_names, known, repeats=call.repeats))
        if reading:
            hooks.enter_context(tuner.method_of(reading[0]).during(tuner, reading, call))
        return hooks.pop_all()


@contextmanager
def _mixed(
    layers: Iterable[AdapterLayer | ModulesToSaveWrapper],
    adapter_names: Sequence[str],
    known: Iterable[str],
    *,
    repeats: int = 1,
) -> Iterator[None]:
    """Tells the layers which adapter each row of the batch has, for as long as the context lasts.

    Args:
        layers: all that hold adapters.
        adapter_names: one for each row.
        known: the model's adapters.
        repeats: how often `generate` may repeat each row (beams, or several samples of one prompt).

    Raises:
        AdapterError: where there is no such adapter, its layers mix no batches, or adapters are merged.
    """
    choices = [BASE, *known]
    for name in adapter_names:
        if name not in choices:
            raise AdapterError(f"adapter_names: there is no adapter {name!r}; {did_you_mean(name, choices)}")

    def tell(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        times = repeats if args and len(args[0]) == repeats * len(adapter_names) else 1
        return args, {**kwargs, "adapter_names": [name for name in adapter_names for _ in range(times)]}

    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(layer, AdapterLayer):
                _check(layer)
            hooks.enter_context(_removed(layer.register_forward_pre_hook(tell, with_kwargs=True)))
        yield


def repeats_of(model: Any, arguments: dict[str, Any]) -> int:
    """How often `generate` repeats each row, by its arguments and the model's settings."""
    settings = arguments.get("generation_config") or getattr(model, "generation_config", None)
    names = ("num_beams", "num_return_sequences")
    return max(arguments.get(name) or getattr(settings, name, None) or 1 for name in names)


def _check(layer: AdapterLayer) -> None:
    if not layer.takes_adapter_names:
        raise AdapterError(f"adapter_names: a {type(layer).__name__} layer of this method mixes no batches")
    if layer.merged_adapters:
        raise AdapterError("adapter_names: adapters are merged into the model; call unmerge_adapter before")


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
