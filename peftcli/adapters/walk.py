"""One walk over a model's modules that does not look inside what adapters added."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.tokens import TrainableTokensWrapper


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
            inside, prefix = site.module, f"{site.name}."
            # What a module holds beside the parameters that are adapted is still the base model's.
            while isinstance(inside, AdapterLayer) and inside.parameter:
                inside, prefix = inside.base_layer, f"{prefix}base_layer."
            if not isinstance(inside, AdapterLayer | ModulesToSaveWrapper | TrainableTokensWrapper):
                stack.append(_children(inside, prefix))


def stack(module: nn.Module | None) -> Iterator[AdapterLayer]:
    """The adapter layers on one module, outermost first; none on what is no module.

    One lies around another where methods are mixed, or where several parameters of the module are adapted.
    """
    if isinstance(module, TrainableTokensWrapper):
        module = module.token_adapter
    while isinstance(module, AdapterLayer):
        yield module
        module = module.base_layer


def innermost(module: nn.Module) -> nn.Module:
    """The base model's own module, without what adapters put around it."""
    if isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module


def place(site: Site) -> Site:
    """Where a parameter's layer is on its module, or belongs: as in PEFT, that of the last parameter lies outermost."""
    module = getattr(site.parent, site.child)
    order = [name for name, _ in innermost(module).named_parameters(recurse=False)]
    own, site = order.index(site.parameter), site._replace(module=module)
    while isinstance(site.module, AdapterLayer) and order.index(site.module.parameter) > own:
        outer = site.module
        site = site._replace(module=outer.base_layer, parent=outer, child="base_layer")
    return site


def _children(parent: nn.Module, prefix: str) -> Iterator[Site]:
    for child, module in list(parent._modules.items()):  # noqa: SLF001  (named_children leaves out repeated ones)
        if module is not None:
            yield Site(prefix + child, module, parent, child)
