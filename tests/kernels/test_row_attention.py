"""Attention row by row is that of all tokens under a mask that keeps rows apart."""

import pytest
import torch

from peftcli.kernels.row_attention import attend, reference


def inputs(heads, key_heads, tokens, size=8):
    draw = torch.Generator().manual_seed(0)
    shapes = [(heads, tokens, size), (key_heads, tokens, size), (key_heads, tokens, size)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("bounds", [[0, 7], [0, 1, 2, 9], [0, 5, 6, 20, 31]])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("options", [{}, {"scaling": 0.3}, {"window": 3}])
def test_it_equals_its_reference_forward_and_backward(bounds, heads, key_heads, options):
    given = inputs(heads, key_heads, bounds[-1])
    found, wanted = attend(*given, bounds, **options), reference(*given, bounds, **options)
    assert found.shape == (bounds[-1], heads, 8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, given, slope), torch.autograd.grad(wanted, given, slope), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_dropout_drops_and_keeps_the_mean():
    given = [each.detach() for each in inputs(2, 2, 40)]
    plain = attend(*given, [0, 20, 40])
    torch.manual_seed(0)
    dropped = torch.stack([attend(*given, [0, 20, 40], dropout=0.2) for _ in range(2000)])
    assert not torch.equal(dropped[0], plain)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0, atol=0.15)


def test_heads_that_share_keys_keep_one_copy_of_them():
    given = inputs(6, 2, 30)
    kept = []

    def note(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend(*given, [0, 10, 30])
    # Queries and outputs have 6 heads, keys and values 2; nothing of 30 x 30 is kept.
    assert max(kept) <= 6 * 30 * 8 * 8
