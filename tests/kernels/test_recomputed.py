"""Norms and gated products that are made anew in the backward pass equal their references, and keep less."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from peftcli.kernels import gated_product, rms_norm
from peftcli.kernels.lora_linear import Weights, fused
from peftcli.kernels.recipe import left_on


def drawn(*shape, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


def kept_bytes(made, *without):
    """What the backward pass of `made()` keeps, each storage once, without those of some tensors."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = made()
    assert alive.requires_grad
    return sum(size for place, size in kept.items() if place not in {t.data_ptr() for t in without})


def assert_same(function, other, inputs, tolerance):
    found, wanted = function(*inputs), other(*inputs)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    slope = drawn(*wanted.shape, dtype=wanted.dtype, seed=9).detach()
    for one, two in zip(
        torch.autograd.grad(found, inputs, slope), torch.autograd.grad(wanted, inputs, slope), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


TYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)


@TYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "relu", "linear"])
def test_a_gated_product_equals_its_reference(activation, dtype, tolerance):
    act = ACT2FN[activation]
    assert_same(
        lambda g, u: gated_product.gated_product(g, u, act),
        lambda g, u: gated_product.reference(g, u, act),
        [drawn(3, 5, 8, dtype=dtype), drawn(3, 5, 8, dtype=dtype, seed=1)],
        tolerance,
    )


@TYPES
def test_a_norm_equals_its_reference(dtype, tolerance):
    weight = drawn(8, dtype=dtype, seed=2).detach()
    assert_same(
        lambda x: rms_norm.rms_norm(x, weight, 1e-6),
        lambda x: rms_norm.reference(x, weight, 1e-6),
        [drawn(3, 5, 8, dtype=dtype)],
        tolerance,
    )


def lora(inputs, outputs, seed=3):
    weight = drawn(outputs, inputs, dtype=torch.float32, seed=seed).detach()
    own = drawn(2, inputs, dtype=torch.float32, seed=4), drawn(outputs, 2, dtype=torch.float32, seed=5)
    return Weights(weight, None, *own, 0.5)


def test_adapted_layers_behind_a_norm_and_a_product_have_the_same_gradients_and_keep_neither():
    x, weight = drawn(40, 16, dtype=torch.float32), drawn(16, dtype=torch.float32, seed=6).detach()
    gate, up, down = lora(16, 64), lora(16, 64, seed=7), lora(64, 16, seed=8)
    trained = [x, *(each for part in (gate, up, down) for each in (part.A_RI, part.B_OR))]

    def plain():
        y = rms_norm.reference(x, weight, 1e-6)
        return fused(F.silu(fused(y, gate)) * fused(y, up), down)

    def lean():
        y = rms_norm.rms_norm(x, weight, 1e-6)
        return fused(gated_product.gated_product(fused(y, gate), fused(y, up), F.silu), down)

    torch.testing.assert_close(lean(), plain(), rtol=1e-5, atol=1e-5)
    for one, two in zip(
        torch.autograd.grad(lean().square().sum(), trained),
        torch.autograd.grad(plain().square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    weights = [t for part in (gate, up, down) for t in (part.W_OI, part.A_RI, part.B_OR)] + [weight]
    number, ranks = 40 * 4, 3 * 40 * 2 * 4
    # x, a scale a row, the gate and what it gates; not the norm's output (16), the activation or the product (64 each).
    assert kept_bytes(lean, *weights) == number * (16 + 1 + 64 + 64) + ranks
    assert kept_bytes(plain, *weights) >= number * (16 + 16 + 4 * 64) + ranks


def test_what_several_layers_share_is_made_once_and_let_go():
    x, weight = drawn(4, 16, dtype=torch.float32), drawn(16, dtype=torch.float32).detach()
    y = rms_norm.rms_norm(x, weight, 1e-6)
    recipe = left_on(y).recipe
    made = []
    recipe._make, make = (lambda *inputs: made.append(1) or make(*inputs)), recipe._make
    (fused(y, lora(16, 8)) + fused(y, lora(16, 8, seed=7))).sum().backward()
    assert made == [1]
    assert recipe._made is None


def test_a_second_backward_pass_makes_it_again():
    x, weight = drawn(4, 16, dtype=torch.float32), drawn(16, dtype=torch.float32).detach()
    weights = lora(16, 8)
    loss = fused(rms_norm.rms_norm(x, weight, 1e-6), weights).square().sum()
    first = torch.autograd.grad(loss, [x, weights.A_RI], retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, [x, weights.A_RI]), strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_gradient_nothing_is_left():
    with torch.no_grad():
        assert left_on(rms_norm.rms_norm(drawn(2, 4), drawn(4), 1e-6)) is None
    assert left_on(torch.ones(2)) is None
