"""The chunked loss is the plain cross entropy, in value and in gradient, of logits and of what a head makes them of."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.trainer_pt_utils import LabelSmoother

from peftcli.data.tokens import IGNORED
from peftcli.tasks.token_loss import Head, summed_head_loss, summed_token_loss


def some(dtype=torch.float64, tokens=23, vocabulary=11):
    torch.manual_seed(0)
    logits = (3 * torch.randn(tokens, vocabulary, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[::4] = IGNORED
    return logits, targets


def both_gradients(logits, one, other):
    return torch.autograd.grad(one, logits, retain_graph=True)[0], torch.autograd.grad(other, logits)[0]


def test_it_is_the_cross_entropy():
    logits, targets = some()
    ours = summed_token_loss(logits, targets)
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*both_gradients(logits, 3 * ours, 3 * plain))


def test_its_gradient_is_the_numerical_one():
    logits, targets = some(tokens=5)
    for smoothing in (0.0, 0.2):
        assert torch.autograd.gradcheck(
            lambda x, smoothing=smoothing: summed_token_loss(x, targets, label_smoothing=smoothing), (logits,)
        )


def test_smoothing_is_that_of_transformers():
    logits, targets = some()
    ours = summed_token_loss(logits, targets, label_smoothing=0.1) / (targets != IGNORED).sum()
    theirs = LabelSmoother(epsilon=0.1)({"logits": logits.unsqueeze(0)}, targets.unsqueeze(0))
    torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-6, atol=0)
    torch.testing.assert_close(*both_gradients(logits, ours, theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_it_is_the_same_in_any_chunks(chunk):
    logits, targets = some()
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=0.3)
    ours = summed_token_loss(logits, targets, label_smoothing=0.3, chunk=chunk)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*both_gradients(logits, ours, plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, targets = some(dtype)
    ours = summed_token_loss(logits, targets)
    plain = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain)
    one, other = both_gradients(logits, ours, plain)
    assert one.dtype == dtype
    torch.testing.assert_close(one, other)


def test_a_loss_scale_beyond_float16_does_not_overflow():
    logits, targets = some(torch.float16)
    (gradient,) = torch.autograd.grad(summed_token_loss(logits, targets) * 65536.0 / 64, logits)
    assert gradient.isfinite().all()


def test_an_ignored_token_adds_nothing_even_where_its_logits_are_infinite():
    logits, targets = some()
    with torch.no_grad():
        logits[0] = float("-inf")
    (gradient,) = torch.autograd.grad(summed_token_loss(logits, targets), logits)
    assert gradient[0].abs().sum() == 0
    assert gradient.isfinite().all()


def test_no_trained_token_gives_zero():
    logits, targets = some()
    assert summed_token_loss(logits, torch.full_like(targets, IGNORED)).item() == 0


def some_hidden(dtype=torch.float64, *, bias=True):
    _, targets = some()
    hidden = torch.randn(len(targets), 7, dtype=torch.float64).to(dtype).requires_grad_()
    weight, own_bias = torch.randn(11, 7).to(dtype), torch.randn(11).to(dtype)
    return hidden, Head(weight, own_bias if bias else None), targets


@pytest.mark.parametrize("rows", [1, 5, 100, None])
@pytest.mark.parametrize("bias", [True, False])
def test_at_the_head_it_is_the_loss_of_its_logits(rows, bias):
    hidden, head, targets = some_hidden(bias=bias)
    ours = summed_head_loss(hidden, head, targets, label_smoothing=0.2, rows=rows)
    plain = summed_token_loss(F.linear(hidden, *head), targets, label_smoothing=0.2)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*both_gradients(hidden, 3 * ours, 3 * plain))


def test_at_the_head_its_gradient_is_the_numerical_one():
    hidden, head, targets = some_hidden()
    assert torch.autograd.gradcheck(
        lambda x: summed_head_loss(x, head, targets, label_smoothing=0.1, rows=9), (hidden,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_at_a_head_of_half_precision_it_is_summed_in_float32(dtype):
    hidden, head, targets = some_hidden(dtype)
    ours = summed_head_loss(hidden, head, targets, rows=6)
    plain = summed_token_loss(F.linear(hidden, *head), targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain)
    one, other = both_gradients(hidden, ours, plain)
    assert one.dtype == dtype
    torch.testing.assert_close(one, other)


def test_at_the_head_autocast_is_heeded():
    hidden, head, targets = some_hidden(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = summed_head_loss(hidden, head, targets, rows=6)
        plain = summed_token_loss(F.linear(hidden, *head), targets)
    assert plain != summed_token_loss(F.linear(hidden, *head), targets)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*both_gradients(hidden, ours, plain), rtol=1e-2, atol=1e-2)


def test_at_the_head_an_ignored_token_adds_nothing_even_where_it_is_infinite():
    hidden, head, targets = some_hidden()
    with torch.no_grad():
        hidden[0] = float("inf")
    loss = summed_head_loss(hidden, head, targets, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite()
    assert gradient[0].abs().sum() == 0
    assert gradient.isfinite().all()


def test_neither_changes_what_it_is_given():
    logits, targets = some(torch.float32)
    hidden, head, _ = some_hidden(torch.float32)
    before = [each.clone() for each in (logits, hidden, head.weight, targets)]
    summed_token_loss(logits, targets).backward()
    summed_head_loss(hidden, head, targets).backward()
    for one, other in zip(before, (logits, hidden, head.weight, targets), strict=True):
        assert torch.equal(one, other)
