"""Every tensor's memory, entered when an operation makes it and struck out when nothing holds it any more."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ACTIVATIONS, LOGITS = "activations", "logits"
# Larger blocks the C library gives back to the system at once (DEFAULT_MMAP_THRESHOLD_MAX of glibc).
KEPT = 32 * 2**20


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as those below
    """Counts the bytes that are alive, by what they are for, while it is entered; remembers the most there ever were.

    Views and in-place operations cost nothing: it is storages that are counted, each once.

    Args:
        vocabulary: the last side of tensors that are counted as logits; None where there are none.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.turnover = 0
        self._entries: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Enters tensors that are there already; those that are entered change their kind."""
        for tensor in tensors:
            entry = self._entries.get(id(tensor.untyped_storage()))
            if entry is None:
                self._enter(tensor, kind)
            else:
                reference, before, size = entry
                self.alive[before] -= size
                self.alive[kind] += size
                self._entries[id(tensor.untyped_storage())] = (reference, kind, size)

    def start_over(self) -> None:
        """Forgets the peak and the turnover so far."""
        self.peak, self.turnover = self.alive.copy(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does the operation, and enters what it made."""
        if func is torch.ops.aten._grouped_mm.default:  # noqa: SLF001  (its public name is the same operation)
            result = _grouped_product(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor) and id(made.untyped_storage()) not in self._entries:
                is_logits = made.dim() > 1 and made.shape[-1] == self.vocabulary
                self._enter(made, LOGITS if is_logits else ACTIVATIONS)
        return result

    def _enter(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()

        def strike_out(_: object) -> None:
            _, last, size = self._entries.pop(key)
            self.alive[last] -= size

        self._entries[key] = (weakref.ref(storage, strike_out), kind, size)
        self.alive[kind] += size
        self.turnover += size if size <= KEPT else 0
        if self.alive.total() > self.peak.total():
            self.peak = self.alive.copy()


def _grouped_product(
    rows: Tensor,
    matrices: Tensor,
    offs: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor of the result's shape: PyTorch's own rule for it knows bfloat16 alone (experts' layers call it)."""
    del bias
    if matrices.dim() == 3:
        return rows.new_empty((rows.shape[0], matrices.shape[2]), dtype=out_dtype)
    return rows.new_empty((offs.shape[0], rows.shape[0], matrices.shape[1]), dtype=out_dtype)


def sizes(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors, shared ones counted once."""
    found: dict[int, torch.UntypedStorage] = {
        id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)
    }
    return sum(storage.nbytes() for storage in found.values())
