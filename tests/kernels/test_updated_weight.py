"""A weight that is not made gives what the sum gives, forward and backward, and never holds the sum itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftcli.kernels.updated_weight import UpdatedWeight, reference

E, M, N = 4, 8, 16
ROWS = torch.tensor([2, 2, 5, 9], dtype=torch.int32)  # the second expert has none


def parts(*experts: int, rank: int = 3, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """W, L and R."""
    torch.manual_seed(0)
    shapes = ((M, N), (M, rank), (rank, N))
    return [torch.randn(*experts, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def x(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


# What modules do with weights, of one matrix and of several; the sum must be made for the last ones only.
ONE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "linear": lambda w, x: F.linear(x, w),
    "linear with a bias": lambda w, x: F.linear(x, w, x.new_ones(M)),
    "linear over a batch": lambda w, x: F.linear(x.unflatten(0, (1, -1)), w),
    "from the right": lambda w, x: x @ w.T,
    "from the right, transposed by dimensions": lambda w, x: torch.matmul(x, w.transpose(0, 1)),
    "from the left": lambda w, x: w @ x.mT,
    "a vector": lambda w, x: w @ x[0],
    "a vector from the right": lambda w, x: x[0] @ w.mT,
    "mm": lambda w, x: torch.mm(w, x.mT),
    "a layer": lambda w, x: torch.func.functional_call(nn.Linear(N, M).double(), {"weight": w}, x),
}
SEVERAL: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "a loop": lambda w, x: torch.cat([F.linear(x, w[i]) for i in range(E)]),
    "a loop over tensors": lambda w, x: torch.cat([x @ w[i].T for i in torch.arange(E)[1:]]),
    "the last": lambda w, x: F.linear(x, w[-1]),
    "bmm": lambda w, x: torch.bmm(x.expand(E, -1, -1), w.transpose(-2, -1)),
    "bmm from the left": lambda w, x: torch.bmm(w, x.mT.expand(E, -1, -1)),
    "chosen ones": lambda w, x: torch.bmm(w[torch.arange(len(x)) % E], x.unsqueeze(-1)),
    "all to all": lambda w, x: x @ w.mT,
    "one batch for all": lambda w, x: x[None] @ w.mT,
}
REST: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "einsum": lambda w, x: torch.einsum("ni,eoi->neo", x, w),
    "a slice": lambda w, x: x @ w[1:3].mT,
    "several indices": lambda w, x: w[1, 2] * x,
    "arithmetic": lambda w, x: (w * 2).sum(0) @ x.mT,
    "a list": lambda w, x: torch.cat([w, w]).sum((0, 1)) * x,
    "other axes": lambda w, x: w.transpose(0, 1).sum(1) @ x.mT,
    "both": lambda w, x: (w @ w.mT).sum() * x,
    "a keyword": lambda w, x: F.linear(input=x, weight=w[0] + 0),
    "view": lambda w, x: x @ w.view(-1, N).T,
}
EVERY = [
    *((name, (), action) for name, action in ONE.items()),
    *((name, (E,), action) for name, action in SEVERAL.items()),
    *((name, (E,), action) for name, action in REST.items()),
]


@pytest.mark.parametrize(("name", "experts", "action"), EVERY, ids=[each[0] for each in EVERY])
def test_every_operation_gives_what_it_gives_with_the_sum(name: str, experts: tuple[int, ...], action: Any):
    results = []
    for kind in (UpdatedWeight, reference):
        leaves, rows = parts(*experts), x(5, N)
        torch.manual_seed(2)
        result = action(kind(*leaves), rows)
        assert type(result) is torch.Tensor
        result.pow(3).sum().backward()
        results.append([result.detach(), *(leaf.grad for leaf in (*leaves, rows))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", [*ONE, *SEVERAL])
def test_products_keep_nothing_of_the_size_of_the_sum(name: str):
    experts = () if name in ONE else (E,)
    plain, left, right = parts(*experts)
    weight = UpdatedWeight(plain.detach(), left, right)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        {**ONE, **SEVERAL}[name](weight, x(2, N))
    assert weight._made is None
    own = plain.untyped_storage().data_ptr()
    # What chooses experts by a list of them copies those, with and without an adapter.
    others = [each for each in kept if each.untyped_storage().data_ptr() != own and name != "chosen ones"]
    assert kept
    assert max((each.numel() for each in others), default=0) < plain.numel()


def by_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_grouped_products_give_what_a_loop_gives(rank: int, dtype: torch.dtype, turned: bool):
    def loop(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        bounds = [0, *ROWS.tolist()]
        return torch.cat([rows[bounds[i] : bounds[i + 1]] @ weight[i] for i in range(E)])

    results = []
    for kind in (UpdatedWeight, reference):
        plain, left, right = (leaf.detach().to(dtype) for leaf in parts(E, rank=rank, dtype=torch.float32))
        rows = x(9, N if turned else M, dtype=torch.float32).detach().to(dtype)
        leaves = [leaf.requires_grad_() for leaf in (by_rows(left.mT), right, rows)]
        weight = kind(plain, leaves[0].mT, leaves[1])
        weight = weight.mT if turned else weight
        if kind is UpdatedWeight:
            result = F.grouped_mm(leaves[2], weight, offs=ROWS)
            assert weight._made is None
        else:
            result = loop(weight, leaves[2])
        result.float().pow(2).sum().backward()
        results.append([result.detach().float(), *(leaf.grad.float() for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_it_tells_what_the_sum_would_tell():
    weight = UpdatedWeight(*parts(E))
    assert (weight.shape, weight.dtype, weight.ndim, len(weight)) == ((E, M, N), torch.float64, 3, E)
    assert (weight.size(1), weight.dim(), weight.device.type, weight.requires_grad) == (M, 3, "cpu", True)
    assert weight._made is None
    assert weight.is_contiguous()
    assert repr(weight) == repr(weight.made())
    assert not UpdatedWeight(*(leaf.detach() for leaf in parts())).requires_grad


def test_under_autocast_products_are_in_its_type_and_the_sum_in_the_weight_s():
    weight = UpdatedWeight(*parts(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        product = F.linear(x(3, N, dtype=torch.float32), weight)
        assert product.dtype == torch.bfloat16
        assert weight.made().dtype == torch.float32
    torch.testing.assert_close(
        product.float(), x(3, N, dtype=torch.float32) @ weight.made().T, rtol=0.05, atol=0.1
    )


def test_what_reads_memory_directly_is_refused():
    weight = UpdatedWeight(*parts())
    with (
        torch._C.DisableTorchFunctionSubclass(),
        pytest.raises(TypeError, match="reads a weight that is not made"),
    ):
        torch.add(weight, 1)
