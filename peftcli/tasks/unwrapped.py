"""The Transformers model inside whatever a training has put around it, and a model while it is not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers for adapters, several processes and compilation."""
    inner: Any = model
    while True:
        if isinstance(compiled := getattr(inner, "_orig_mod", None), nn.Module):
            inner = compiled
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            assert isinstance(inner, nn.Module)
            return inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model as in an evaluation, without gradients; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
