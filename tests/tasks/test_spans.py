"""Spans: the likeliest of all that may be, by trying each; windows compared by what no answer scores in them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcli.tasks.spans import Span, best_of, best_spans


@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 9), longest=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_the_best_span_is_the_best_of_all_spans(seed: int, tokens: int, longest: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 1, tokens, generator=draw).double()
    candidates = torch.rand(1, tokens, generator=draw) < 0.7
    none = torch.tensor([0])
    found = best_spans(start, end, candidates, none, longest)
    scored = {
        (first, last): float(start[0, first] + end[0, last])
        for first, last in itertools.combinations_with_replacement(range(tokens), 2)
        if last - first < longest and candidates[0, first] and candidates[0, last]
    }
    nothing = float(start[0, 0] + end[0, 0])
    if not scored:
        assert found.odds == [-math.inf]
        assert found.scores == [0]
        return
    best = max(scored, key=lambda span: scored[span])
    assert (found.first, found.last) == ([best[0]], [best[1]])
    assert found.odds[0] == pytest.approx(scored[best] - nothing)
    chances = start.softmax(-1)[0, best[0]] * end.softmax(-1)[0, best[1]]
    assert found.scores[0] == pytest.approx(float(chances))
    assert found.none_scores[0] == pytest.approx(float(start.softmax(-1)[0, 0] * end.softmax(-1)[0, 0]))


def test_padding_takes_no_part() -> None:
    start, end = torch.tensor([[0.0, 3, 1]]), torch.tensor([[0.0, 1, 2]])
    candidates = torch.tensor([[False, True, True]])
    alone = best_spans(start, end, candidates, torch.tensor([0]), 2)
    padded = [torch.nn.functional.pad(each, (0, 3), value=-torch.inf) for each in (start, end)]
    wide = torch.nn.functional.pad(candidates, (0, 3))
    assert best_spans(*padded, wide, torch.tensor([0]), 2) == alone
    assert (alone.first, alone.last) == ([1], [2])


def span(odds: float, start: int = 0) -> Span:
    return Span(start, start + 1, odds, 0.5, 0.5)


def test_the_best_window_is_the_one_that_is_surest_of_its_answer() -> None:
    assert best_of([span(-3), span(2, 7), span(1)], none=True) == span(2, 7)
    assert best_of([span(-3), span(-1, 7)], none=True) is None
    assert best_of([span(-3), span(-1, 7)], none=False) == span(-1, 7)
    assert best_of([span(-math.inf)], none=False) is None


@given(odds=st.lists(st.floats(-5, 5), min_size=1, max_size=5), none=st.booleans(), data=st.data())
def test_the_order_of_windows_has_no_part_in_it(odds: list[float], none: bool, data: Any) -> None:
    spans = [span(each, at) for at, each in enumerate(odds)]
    mixed = data.draw(st.permutations(spans))
    one, other = best_of(spans, none=none), best_of(mixed, none=none)
    assert (one and one.odds) == (other and other.odds)
