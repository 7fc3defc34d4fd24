"""Modules that are trained and saved whole beside an adapter: new heads, resized embeddings (`modules_to_save`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base import Site, rows_of
from peftcli.errors import AdapterError


class ModulesToSaveWrapper(nn.Module):
    """A module of the base model (`original_module`, frozen) and each adapter's own copy of it (`modules_to_save`)."""

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self._active_adapter: list[str] = []
        self._disable_adapters = False
        original_module.requires_grad_(False)

    @property
    def active_adapters(self) -> list[str]:
        """The adapter whose copy is in use: one, or none."""
        return self._active_adapter

    @property
    def active_adapter(self) -> list[str]:
        """PEFT's other name for `active_adapters`."""
        return self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        """Whether the original is in use."""
        return self._disable_adapters

    def add(self, adapter_name: str) -> None:
        """Makes an adapter's copy, equal to the original at first."""
        if adapter_name not in self.modules_to_save:
            self.modules_to_save[adapter_name] = copy.deepcopy(self.original_module).requires_grad_(False)

    def adapter_names(self) -> list[str]:
        """The adapters that have a copy here."""
        return list(self.modules_to_save)

    def current(self) -> nn.Module:
        """The module that `forward` calls."""
        if self._disable_adapters or not self._active_adapter:
            return self.original_module
        return self.modules_to_save[self._active_adapter[0]]

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The active adapter's copy, or the original; with `adapter_names` for each row its adapter's."""
        if adapter_names is None or self._disable_adapters:
            return self.current()(*args, **kwargs)
        batch, *others = args
        own = self.adapter_names()
        result: Any = None
        for name, rows in rows_of(adapter_names, batch).items():
            module = self.modules_to_save[name] if name in own else self.original_module
            part = module(batch[rows], *others, **kwargs)
            if result is None:
                result = part.new_empty((len(batch), *part.shape[1:]))
            result[rows] = part
        return result

    def follow(self, active: Sequence[str]) -> None:
        """Takes over which adapter is active, leaving what is trained as it is."""
        self._active_adapter = [name for name in active if name in self.modules_to_save]

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Uses, and unless `inference_mode` trains, the copy of one of these adapters; the original where none has one.

        Raises:
            AdapterError: where two of them have a copy: it is not clear what both together would be.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        own = [name for name in names if name in self.modules_to_save]
        if len(own) > 1:
            raise AdapterError(f"modules_to_save: only one of {', '.join(own)} can be active at a time")
        for name, module in self.modules_to_save.items():
            module.requires_grad_(name in own and not inference_mode)
        self._active_adapter = own

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these adapters' copies, or stops training them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.modules_to_save:
                self.modules_to_save[name].requires_grad_(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Uses the active copy, or the original."""
        if enabled:
            self.set_adapter(self._active_adapter)
        else:
            self.modules_to_save.requires_grad_(False)
        self._disable_adapters = not enabled

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter's copy."""
        if adapter_name in self.modules_to_save:
            del self.modules_to_save[adapter_name]
        self._active_adapter = [name for name in self._active_adapter if name != adapter_name]

    def adapter_tensors(self, name: str) -> Iterator[tuple[str, str, torch.Tensor]]:
        """The tensors of an adapter's copy: their keys in its file, in the live module, and themselves."""
        if name in self.modules_to_save:
            for key, tensor in self.modules_to_save[name].state_dict(keep_vars=True).items():
                yield key, f"modules_to_save.{name}.{key}", tensor

    def __getattr__(self, name: str) -> Any:
        """What the wrapper does not have, the module in use has: models ask a head for its `weight`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("original_module", "modules_to_save", "_active_adapter", "_disable_adapters"):
                raise
            return getattr(self.current(), name)


def name_heads(config: Any, heads: Sequence[str]) -> None:
    """As PEFT writes it: a task's usual heads are in modules_to_save, whether the model has them or not."""
    if heads and hasattr(config, "modules_to_save"):
        named = list(config.modules_to_save or ())
        config.modules_to_save = named + [head for head in heads if head not in named]


def wrap_whole(sites: Sequence[Site], adapter_name: str) -> None:
    """Gives an adapter its own copies of modules."""
    for site in sites:
        wrapper = site.module
        if not isinstance(wrapper, ModulesToSaveWrapper):
            wrapper = ModulesToSaveWrapper(site.module)
            wrapper.train(site.module.training)
            setattr(site.parent, site.child, wrapper)
        wrapper.add(adapter_name)
