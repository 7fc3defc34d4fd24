"""A weight with a low-rank update, W + L R, of which the sum is not made: products with it go through L and R.

Notable: it is a tensor to the module that holds it, whose own code runs as it is: a loop over experts, `bmm`,
`grouped_mm`. What that code does most with weights, products and the choice of experts, is answered here without the
sum, and so is its gradient; any other operation gets the sum as an ordinary tensor, as `reference` gives it.

Shape suffixes: M and N the sides of a matrix, R rank, E experts; W may be one matrix (M, N), or E of them (E, M, N).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def reference(plain: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W + L R, of W's dtype: what the tensor below must equal."""
    with torch.autocast(plain.device.type, enabled=False):
        return _plus(plain, left, right)


class UpdatedWeight(Tensor):
    """W + L R.

    Attributes:
        plain: W, (…, M, N).
        left: L, (…, M, R), of W's dtype; by columns, since grouped products want each line to begin at a multiple of
            16 bytes, which R numbers seldom fill.
        right: R, (…, R, N), of W's dtype; by rows.
    """

    plain: Tensor
    left: Tensor
    right: Tensor

    def __new__(cls, plain: Tensor, left: Tensor, right: Tensor) -> UpdatedWeight:
        """A tensor without memory of its own."""
        trained = plain.requires_grad or left.requires_grad or right.requires_grad
        made: UpdatedWeight = Tensor._make_wrapper_subclass(  # noqa: SLF001  (the only way to make one)
            cls, plain.shape, dtype=plain.dtype, device=plain.device, requires_grad=trained
        )
        return made

    def __init__(self, plain: Tensor, left: Tensor, right: Tensor) -> None:
        self.plain, self.left, self.right = plain, left, right
        self._made: Tensor | None = None
        self._experts: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    def made(self) -> Tensor:
        """The sum, as an ordinary tensor; made once."""
        if self._made is None:
            self._made = reference(self.plain, self.left, self.right)
        return self._made

    def expert(self, index: int) -> UpdatedWeight:
        """One of several matrices."""
        # The factors are taken apart once: each by itself would have a gradient of the size of all.
        if self._experts is None:
            self._experts = self.left.unbind(), self.right.unbind()
        left, right = self._experts
        return UpdatedWeight(self.plain[index], left[index], right[index])

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What an operation gives that has such a weight among its arguments."""
        kwargs = kwargs or {}
        operation = _OPERATIONS.get(func)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  (as PyTorch's documentation of subclasses has it)
            if func in _FACTS:
                return func(*args, **kwargs)
            result = NotImplemented if operation is None else operation(func, *args, **kwargs)
            if result is NotImplemented:
                return func(*_made(args), **{name: _made(value) for name, value in kwargs.items()})
            return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Below PyTorch's functions there is no memory to read."""
        raise TypeError(f"{func} reads a weight that is not made")


def _made(value: Any) -> Any:
    """An argument with the sums in the place of such weights."""
    if isinstance(value, UpdatedWeight):
        return value.made()
    if isinstance(value, list | tuple):
        return type(value)(map(_made, value))
    return value


def _plus(plain: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`plain` + `one` @ `other`, without the product by itself where there is an operation for that."""
    dims = {plain.dim(), one.dim(), other.dim()}
    if dims == {2}:
        return torch.addmm(plain, one, other)
    if dims == {3} and plain.shape[0] == one.shape[0] == other.shape[0]:
        return torch.baddbmm(plain, one, other)
    return plain + one @ other


def _chosen(_: Any, weight: UpdatedWeight, index: Any) -> Any:
    """One expert's matrix, or those of several."""
    if weight.dim() != 3 or isinstance(index, bool):
        return NotImplemented
    if isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64):
        if index.dim() == 1:
            return UpdatedWeight(weight.plain[index], weight.left[index], weight.right[index])
        index = int(index) if index.dim() == 0 else index
    return weight.expert(index) if isinstance(index, int) else NotImplemented


def _transposed(_: Any, weight: UpdatedWeight, one: int = -2, other: int = -1) -> Any:
    """The transposed matrix, or each of several."""
    dim = weight.dim()
    if {one % dim, other % dim} != {dim - 2, dim - 1}:
        return NotImplemented
    return UpdatedWeight(weight.plain.mT, weight.right.mT, weight.left.mT)


def _turned(_: Any, weight: UpdatedWeight) -> Any:
    """The transposed matrix, where there is one only."""
    return _transposed(_, weight) if weight.dim() == 2 else NotImplemented


def _product(_: Any, one: Any, other: Any, **more: Any) -> Any:
    """`one` @ `other`."""
    if more or isinstance(one, UpdatedWeight) == isinstance(other, UpdatedWeight):
        return NotImplemented
    if isinstance(one, UpdatedWeight):
        return _plus(one.plain @ other, one.left, one.right @ other)
    return _plus(one @ other.plain, one @ other.left, other.right)


def _linear(_: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """`x` @ `weight`ᵀ + `bias`."""
    if not isinstance(weight, UpdatedWeight) or isinstance(x, UpdatedWeight):
        return NotImplemented
    return _plus(F.linear(x, weight.plain, bias), F.linear(x, weight.right), weight.left.mT)


def _grouped(func: Callable[..., Tensor], x: Any, weight: Any, *, offs: Any = None, **more: Any) -> Any:
    """The rows of `x` up to each offset by an expert's matrix of their own."""
    if isinstance(x, UpdatedWeight) or x.dim() != 2 or weight.dim() != 3:
        return NotImplemented
    if any(value is not None for value in more.values()):
        return NotImplemented
    updates = func(func(x, weight.left, offs=offs), weight.right, offs=offs)
    return func(x, weight.plain, offs=offs).add_(updates)


_PRODUCTS = (
    torch.matmul,
    torch.mm,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
)
# Those of PyTorch's functions that need no sum. Each is called with the function and its arguments, and may decline.
_OPERATIONS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _chosen,
    Tensor.transpose: _transposed,
    torch.transpose: _transposed,
    Tensor.mT.__get__: _transposed,  # type: ignore[attr-defined]  # a descriptor
    Tensor.T.__get__: _turned,  # type: ignore[attr-defined]
    Tensor.t: _turned,
    F.linear: _linear,
    F.grouped_mm: _grouped,
    torch._grouped_mm: _grouped,  # noqa: SLF001  (what the function above is to a subclass)
    **dict.fromkeys(_PRODUCTS, _product),
}
# What the tensor knows by itself.
_FACTS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]  # descriptors
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.__len__,
}
