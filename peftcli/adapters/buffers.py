"""Tensors by adapter name that are not trained: what layers share, such as VeRA's random projections."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


class BufferDict(nn.Module):
    """A dictionary of buffers, which move and change dtype with the model.

    They are in no state dict, but for those that were put in by `register_buffer` as persistent.
    """

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._buffers[name]  # type: ignore[return-value]  # only tensors are put in

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def keys(self) -> Iterator[str]:
        """The adapters' names."""
        return iter(self)
