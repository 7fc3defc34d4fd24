"""Whether a module is called as its class says."""

from __future__ import annotations

from torch import nn


def is_called_plainly(module: nn.Module) -> bool:
    """Whether calling the module does what its class says: nothing is hooked on, nothing patched over."""
    inside = module.__dict__
    return not (
        inside["_forward_hooks"]
        or inside["_forward_pre_hooks"]
        or inside["_backward_hooks"]
        or inside["_backward_pre_hooks"]
        or "forward" in inside
    )
