"""Batch norms while an adapter is trained: the base's are frozen, and a trained head's see small batches, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_batch_norms(model: nn.Module) -> Iterator[None]:
    """Until the end, frozen batch norms keep to the statistics that they came with: no adapter saves the base's.

    Those of modules that are trained whole learn theirs, and use what they have learnt where a batch is a single value
    for each channel (one row that is pooled to one place), which has no variance.
    """
    handles = []
    lone: list[nn.Module] = []

    def freeze(module: nn.Module, inputs: Any) -> None:  # noqa: ARG001  (a hook)
        module.eval()

    def pass_over(module: nn.Module, inputs: Any) -> None:
        if module.training and inputs[0].numel() == inputs[0].shape[1]:
            lone.append(module.eval())

    def take_up(module: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ARG001  (a hook)
        if module in lone:
            lone.remove(module.train())

    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if ".modules_to_save." in f".{name}.":
            handles.append(module.register_forward_pre_hook(pass_over))
            handles.append(module.register_forward_hook(take_up))
        else:
            handles.append(module.register_forward_pre_hook(freeze))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
