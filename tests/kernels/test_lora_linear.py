"""The fused LoRA linear equals its reference: values, gradients, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from peftcli.kernels.lora_linear import Weights, fused, reference, without_gradient

BOTH = pytest.mark.parametrize("bias", [False, True])


def tensors(*, bias: bool, dtype: torch.dtype, wide: torch.dtype | None = None, x_grad: bool = True):
    """An input (3, 5, 7) and weights of rank 2 and 4 outputs; the adapter has dtype `wide`."""
    torch.manual_seed(1)
    x = torch.randn(3, 5, 7, dtype=dtype, requires_grad=x_grad)
    own = {"dtype": wide or dtype, "requires_grad": True}
    weight, a, b = torch.randn(4, 7, dtype=dtype), torch.randn(2, 7, **own), torch.randn(4, 2, **own)
    return x, Weights(weight, torch.randn(4, dtype=dtype) if bias else None, a, b, 1.7)


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_is_the_numerical_one_in_float64(bias: bool, dropout: float):
    x, weights = tensors(bias=bias, dtype=torch.float64)

    def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same mask at every call
        return fused(x, weights._replace(A_RI=a, B_OR=b), dropout)

    assert torch.autograd.gradcheck(function, (x, weights.A_RI, weights.B_OR))
    assert torch.autograd.gradgradcheck(function, (x, weights.A_RI, weights.B_OR))


def test_the_result_may_be_changed_in_place_by_what_comes_next():
    x, weights = tensors(bias=True, dtype=torch.float64)
    fused(x, weights).relu_().sum().backward()
    other, same = tensors(bias=True, dtype=torch.float64)
    reference(other, same).relu().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7)])
def test_one_row_without_a_batch_and_a_batch_without_rows_go_through(shape: tuple[int, ...]):
    _, weights = tensors(bias=True, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = fused(x, weights)
    torch.testing.assert_close(y, reference(x, weights))
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("dtype", "wide", "tolerance"),
    [
        (torch.float64, None, 1e-14),
        (torch.float32, None, 1e-6),
        (torch.bfloat16, None, 1e-2),
        (torch.bfloat16, torch.float32, 1e-2),
        (torch.float32, torch.float64, 1e-6),
    ],
)
@BOTH
def test_values_and_gradients_equal_the_reference(
    bias: bool, dtype: torch.dtype, wide: torch.dtype | None, tolerance: float
):
    results = []
    for function in (fused, reference):
        x, weights = tensors(bias=bias, dtype=dtype, wide=wide)
        y = function(x, weights)
        y.pow(2).sum().backward()
        results.append([y, x.grad, weights.A_RI.grad, weights.B_OR.grad])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_dropout_hides_the_share_it_names_from_the_update_alone_and_scales_up_the_rest():
    x, ones = torch.ones(1, 4000, requires_grad=True), torch.ones(1, 4000)
    weights = Weights(3 * ones, None, ones, torch.ones(1, 1), 1.0)
    torch.manual_seed(0)
    y = fused(x, weights, 0.25)
    y.backward()
    kept = (x.grad - 3).count_nonzero()
    assert abs(kept - 3000) < 150
    assert y.item() == pytest.approx(12000 + kept.item() / 0.75, rel=1e-4)
    assert (x.grad - 3).max().item() == pytest.approx(1 / 0.75, rel=1e-4)


def test_inputs_that_take_no_gradient_get_none_and_the_factors_get_theirs():
    x, weights = tensors(bias=True, dtype=torch.float64, x_grad=False)
    fused(x, weights).sum().backward()
    assert x.grad is None
    assert weights.A_RI.grad is not None
    assert weights.B_OR.grad is not None


def test_a_view_of_the_input_that_is_not_contiguous_gives_the_same():
    x, weights = tensors(bias=True, dtype=torch.float64)
    turned = x.transpose(0, 1)
    torch.testing.assert_close(fused(turned, weights), reference(turned, weights))


@BOTH
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7)])
def test_without_gradients_the_values_are_the_same(bias: bool, shape: tuple[int, ...]):
    _, weights = tensors(bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(without_gradient(x, weights), reference(x, weights))
        stretched = torch.randn(*shape[:-1], 14, dtype=torch.float64)[..., ::2]
        torch.testing.assert_close(without_gradient(stretched, weights), reference(stretched, weights))


@pytest.mark.parametrize(("dropout", "shapes"), [(0.0, [(15, 2)]), (0.3, [(15, 7), (15, 2)])])
def test_only_the_input_the_rank_r_product_and_a_small_mask_are_kept_for_the_backward_pass(
    dropout: float, shapes: list[tuple[int, ...]]
):
    kept: list[torch.Tensor] = []
    x, weights = tensors(bias=True, dtype=torch.bfloat16, wide=torch.float32)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused(x, weights, dropout)
    own = {tensor.data_ptr() for tensor in (x, weights.W_OI, weights.A_RI, weights.B_OR)}
    extra = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert [tuple(tensor.shape) for tensor in extra] == shapes
    assert [tensor.dtype for tensor in extra] == [torch.bool, torch.float32][-len(shapes) :]


def large(
    function: Callable[..., torch.Tensor], *, turned: bool = False, dtype: torch.dtype = torch.bfloat16
) -> list[torch.Tensor]:
    """Values and gradients where dropout's mask is larger than its generator's state, and the next random number."""
    torch.manual_seed(2)
    x = torch.randn(96, 160, dtype=dtype) if turned else torch.randn(2, 80, 96, dtype=dtype)
    x.requires_grad_()
    a, b = (torch.randn(shape, requires_grad=True) for shape in ((2, 96), (4, 2)))
    weights = Weights(torch.randn(4, 96, dtype=dtype), None, a, b, 1.7)
    y = function(x.T if turned else x, weights, 0.4) + function(x.T if turned else x, weights, 0.2)
    torch.rand(3)  # numbers that are drawn in between
    y.pow(2).sum().backward()
    return [y, x.grad, a.grad, b.grad, torch.rand(1)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mask_drawn_again_is_the_one_that_was_and_no_number_is_lost(dtype: torch.dtype, turned: bool):
    found = large(fused, turned=turned, dtype=dtype)
    *_, number = expected = large(reference, turned=turned, dtype=dtype)
    assert torch.equal(found[-1], number)
    for ours, theirs in (
        zip(found, expected, strict=True) if not turned else ()
    ):  # turned, it is dealt otherwise
        assert (ours - theirs).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-6) * theirs.norm()
    for context in (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.clone(memory_format=torch.contiguous_format), _same
        ),
    ):
        with context:
            again = large(fused, turned=turned, dtype=dtype)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))

    def checkpointed(*args: Any) -> torch.Tensor:
        return checkpoint(fused, *args, use_reentrant=False)

    again = large(checkpointed, turned=turned, dtype=dtype)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_what_is_kept_of_a_large_input_is_the_generator_s_state_and_no_mask():
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, _same):
        large(fused)
    assert not any(tensor == (160, 96) for tensor in kept)
    assert kept.count((5056,)) == 2


def test_a_second_backward_pass_and_a_gradient_of_the_gradient_see_the_same_mask():
    torch.manual_seed(0)
    x = torch.randn(70, 80, dtype=torch.float64, requires_grad=True)
    a, b = torch.randn(2, 80, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    weights = Weights(
        torch.zeros(3, 80, dtype=torch.float64), None, a.requires_grad_(), b.requires_grad_(), 1.0
    )
    loss = fused(x, weights, 0.5).pow(2).sum()
    first = torch.autograd.grad(loss, [x, a, b], retain_graph=True)
    second = torch.autograd.grad(loss, [x, a, b], create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    found = torch.autograd.grad(second[0].pow(2).sum(), [a, b])
    torch.manual_seed(0)
    torch.randn(70, 80, dtype=torch.float64)
    torch.randn(2, 80, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    other = reference(x, weights, 0.5).pow(2).sum()
    (gradient,) = torch.autograd.grad(other, [x], create_graph=True)
    expected = torch.autograd.grad(gradient.pow(2).sum(), [a, b])
    torch.testing.assert_close(found, expected)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
