"""New modules, quickly: a mixture of experts wants ten of them for each of thousands of layers.

nn.Module's own constructor sets seventeen attributes one by one, and its containers look for a new name among theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def blank(kind: type[M], *arguments: Any) -> M:
    """What `kind(*arguments)` gives, without the parameters and modules in it."""
    make: Callable[..., nn.Module] = kind
    fixed, containers = _content(make, *arguments)
    module = kind.__new__(kind)
    inside = module.__dict__
    inside.update(fixed)
    for name, container in containers:
        inside[name] = container()
    return module


def put(container: nn.ModuleDict, adapter_name: str, module: nn.Module) -> None:
    """`container[adapter_name] = module`, for a name that `check_new_name` has let through."""
    container._modules[adapter_name] = module  # noqa: SLF001  (PyTorch has no quicker way)


@cache
def _content(
    kind: Callable[..., nn.Module], *arguments: Any
) -> tuple[dict[str, Any], tuple[tuple[str, Callable[[], Any]], ...]]:
    """What stands in such a module: values that all may have, and containers of which each has its own."""
    # On the meta device nothing is drawn: the first adapter of a process begins like every other with its seed.
    with torch.device("meta"):
        content = vars(kind(*arguments))
    own = {name: type(value) for name, value in content.items() if isinstance(value, dict | set | list)}
    return {name: value for name, value in content.items() if name not in own}, tuple(own.items())
