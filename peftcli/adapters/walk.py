"""One walk over a model's modules that does not look inside what adapters added."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.saved_modules import ModulesToSaveWrapper


def walk(model: nn.Module, *, repeated: bool = False) -> Iterator[Site]:
    """Every module below `model`, in the order of `named_modules`, not looking inside what adapters added.

    A module that has several names comes once, under its first, unless `repeated`.
    """
    seen: set[int] = set()
    stack = [_children(model, "")]
    while stack:
        site = next(stack[-1], None)
        if site is None:
            stack.pop()
        elif repeated or id(site.module) not in seen:
            seen.add(id(site.module))
            yield site
            if not isinstance(site.module, AdapterLayer | ModulesToSaveWrapper):
                stack.append(_children(site.module, f"{site.name}."))


def stack(module: nn.Module) -> Iterator[AdapterLayer]:
    """The adapter layers on one module, outermost first: where methods are mixed, one lies around another."""
    while isinstance(module, AdapterLayer):
        yield module
        module = module.base_layer


def _children(parent: nn.Module, prefix: str) -> Iterator[Site]:
    for child, module in list(parent._modules.items()):  # noqa: SLF001  (named_children leaves out repeated ones)
        if module is not None:
            yield Site(prefix + child, module, parent, child)
