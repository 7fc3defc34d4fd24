"""What every method's layers offer to the engine, and all that they share.

A layer wraps one module of the base model (`base_layer`) and holds any number of named adapters for it. Names are
PEFT's, since people's code reaches for them. What differs between methods is small: how an adapter is made, what
`forward` adds, and what the base module's tensors become when adapters are merged into it (`merge_tensors`).
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from peftcli.adapters.weights import is_quantized, weight_of
from peftcli.errors import AdapterError


class Site(NamedTuple):
    """A place in the base model: `parent.child` is `module`, and `name` is its full name from the model's root.

    Where only one parameter of the module is meant, `parameter` is its name there, and `name` its full name.
    """

    name: str
    module: nn.Module
    parent: nn.Module
    child: str
    parameter: str = ""


class SavedTensor(NamedTuple):
    """A tensor of an adapter: its key in the adapter's file, and its key in the live layer (both within the layer)."""

    saved: str
    live: str
    tensor: torch.Tensor


def rows_of(adapter_names: Sequence[str], batch: torch.Tensor) -> dict[str, list[int]]:
    """The rows of a batch that each adapter has.

    Raises:
        AdapterError: where there is not one name for each row.
    """
    if len(adapter_names) != len(batch):
        raise AdapterError(
            f"adapter_names: {len(adapter_names)} names for {len(batch)} rows; give one for each"
        )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(adapter_names):
        rows.setdefault(name, []).append(row)
    return rows


class AdapterLayer(nn.Module):
    """One module of the base model with the adapters on it.

    Subclasses name their containers of weights in `adapter_layer_names` (each a ModuleDict or ParameterDict by
    adapter name) and of other values in `other_param_names` (plain dicts by adapter name).
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()
    # Whether `forward` takes `adapter_names`: an adapter for each row of a batch.
    takes_adapter_names = False
    base_layer: nn.Module
    merged_adapters: list[str]
    _disable_adapters: bool
    _active_adapter: list[str]
    # The base layer's own parameters, while merged ones stand in their place.
    _originals: dict[str, nn.Parameter]
    # The one parameter of the base layer that is adapted, where it is not the layer as a whole: such layers lie around
    # one another, one for each parameter.
    parameter = ""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.add_module("base_layer", base_layer)
        # Past nn.Module's own way of setting an attribute, which is slow: a mixture of experts has thousands of layers.
        vars(self).update(merged_adapters=[], _disable_adapters=False, _active_adapter=[], _originals={})

    @abstractmethod
    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the base layer's parameters become with these adapters in them, by name; at least in float32.

        A parameter of a module inside it is named from there: `linear.weight`.
        """

    def get_base_layer(self) -> nn.Module:
        """The module that was there before any adapter."""
        layer: nn.Module = self
        while isinstance(layer, AdapterLayer):
            layer = layer.base_layer
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models look at a layer's weight to learn its dtype."""
        return weight_of(self.get_base_layer())

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        bias = self.get_base_layer().bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return bias

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that take part in `forward`, whether or not this layer has them."""
        return self._active_adapter

    @property
    def active_adapter(self) -> list[str]:
        """PEFT's other name for `active_adapters`."""
        return self._active_adapter

    @property
    def merged(self) -> bool:
        """Whether the base layer's weight contains adapters now."""
        return bool(self.merged_adapters)

    @property
    def disable_adapters(self) -> bool:
        """Whether the layer acts as the base layer alone."""
        return self._disable_adapters

    def adapter_names(self) -> list[str]:
        """The adapters that this layer has, in the order they came."""
        found: dict[str, None] = {}
        for attribute in self.adapter_layer_names:
            found.update(dict.fromkeys(getattr(self, attribute).keys()))
        return list(found)

    def adapter_tensors(self, name: str) -> Iterator[SavedTensor]:
        """The tensors that an adapter's file holds for this layer."""
        for attribute in self.adapter_layer_names:
            container = getattr(self, attribute)
            if name not in container:
                continue
            item = container[name]
            if isinstance(item, torch.Tensor):
                yield SavedTensor(attribute, f"{attribute}.{name}", item)
            else:
                for suffix, tensor in item.state_dict(keep_vars=True).items():
                    yield SavedTensor(f"{attribute}.{suffix}", f"{attribute}.{name}.{suffix}", tensor)

    def follow(self, active: Sequence[str]) -> None:
        """Takes over which adapters are active, leaving what is trained as it is."""
        self._active_adapter = list(active)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Lets these adapters, and no others, take part and (unless `inference_mode`) be trained."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for attribute in self.adapter_layer_names:
            for name, item in getattr(self, attribute).items():
                item.requires_grad_(name in names and not inference_mode)
        self._active_adapter = names

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these adapters' weights, or stops training them."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for attribute in self.adapter_layer_names:
            container = getattr(self, attribute)
            for name in names:
                if name in container:
                    _train(container[name], requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Turns all adapters on or off; off, their weights take no gradient either."""
        if enabled:
            self.set_adapter(self._active_adapter)
        else:
            self.set_requires_grad(self.adapter_names(), False)
        self._disable_adapters = not enabled

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter; where it was the only active one, the first that is left becomes active."""
        for attribute in self.adapter_layer_names + self.other_param_names:
            container = getattr(self, attribute)
            if adapter_name in container:
                del container[adapter_name]

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Puts adapters (default: the active ones) into the base layer's weight; `forward` is then the base's own.

        The sum is made in float32 and rounded once. The base layer gets new parameters and the old ones are kept
        for `unmerge`, which is therefore exact; a module that shared the old ones (a tied output head) keeps them.

        Raises:
            AdapterError: where the weight is quantized, or with `safe_merge` where the result is not finite.
        """
        own = self.adapter_names()
        wanted = self._active_adapter if adapter_names is None else adapter_names
        names = [name for name in wanted if name in own and name not in self.merged_adapters]
        if not names:
            return
        base = self.get_base_layer()
        if is_quantized(base):
            raise AdapterError(
                "a quantized base cannot take an adapter in; load the base unquantized to merge"
            )
        already = self.merged_adapters
        self._restore()
        with torch.no_grad():
            merged = self.merge_tensors([*already, *names])
        if safe_merge and not all(torch.isfinite(tensor).all() for tensor in merged.values()):
            if already:
                self.merge(adapter_names=already)
            raise AdapterError(
                f"merging {', '.join(names)} gives values that are not finite; the adapter is broken"
            )
        for key, tensor in merged.items():
            owner, child = owner_of(base, key)
            original: nn.Parameter = getattr(owner, child)
            self._originals[key] = original
            setattr(
                owner, child, nn.Parameter(tensor.to(original.dtype), requires_grad=original.requires_grad)
            )
        self.merged_adapters = [*already, *names]

    def unmerge(self) -> None:
        """Gives the base layer its own parameters back."""
        if not self.merged_adapters:
            warnings.warn("nothing is merged here; there is nothing to undo", stacklevel=2)
        self._restore()

    def _restore(self) -> None:
        base = self.get_base_layer()
        for key, original in self._originals.items():
            owner, child = owner_of(base, key)
            current = getattr(owner, child)
            if (original.device, original.dtype) != (current.device, current.dtype):  # moved while merged
                original.data = original.data.to(current)
            setattr(owner, child, original)
        self._originals = {}
        self.merged_adapters = []


def _train(item: nn.Module | torch.Tensor, trained: bool) -> None:
    """As `requires_grad_`, which looks through a module's modules: most have none."""
    if isinstance(item, nn.Module) and not item._modules:  # noqa: SLF001  (PyTorch has no quicker way)
        for parameter in item._parameters.values():  # noqa: SLF001
            if parameter is not None:
                parameter.requires_grad_(trained)
    else:
        item.requires_grad_(trained)


def owner_of(module: nn.Module, key: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter which is named from `module`, and the parameter's name there."""
    path, _, child = key.rpartition(".")
    return module.get_submodule(path), child
