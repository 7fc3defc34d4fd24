"""Gates compare a metric with a bound."""

import math

import pytest

from peftcli.recipe.gates import parse_gate


@pytest.mark.parametrize(
    ("text", "holds", "fails"),
    [("< 1.2", 1.1, 1.2), ("<=1.2", 1.2, 1.3), ("> -1", 0, -1), (">= .5", 0.5, 0.4), ("== 1e0", 1, 1.1)],
)
def test_a_gate_holds_as_its_sign_says(text, holds, fails):
    gate = parse_gate("eval_loss", text)
    assert gate.holds(holds)
    assert not gate.holds(fails)


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "=="])
def test_no_gate_holds_for_nan(sign):
    assert not parse_gate("eval_loss", f"{sign} 1").holds(math.nan)


@pytest.mark.parametrize("text", ["", "1", "< x", "=< 1", "!= 1", "< 1 < 2", "< nan", "< ١"])
def test_what_is_no_comparison_with_a_number_is_refused(text):
    with pytest.raises(ValueError, match="comparison with a number"):
        parse_gate("eval_loss", text)


def test_a_gate_reads_as_it_is_written():
    assert str(parse_gate("eval_loss", "<1.20")) == "eval_loss < 1.2"
