"""Quality gates: `eval_loss: "< 1.2"`, checked after a run's last evaluation."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
PATTERN = r"^\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*$"


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric and the bound that it has to keep."""

    metric: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether `value` keeps the bound; NaN never does."""
        return _SIGNS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


def parse_gate(metric: str, text: str) -> Gate:
    """The gate that a recipe's `metric: text` says.

    Raises:
        ValueError: where the text is no comparison with a number.
    """
    match = re.match(PATTERN, text, re.ASCII)
    if match is None:
        raise ValueError('must be a comparison with a number, e.g. "< 1.2" (one of <, <=, >, >=, ==)')
    return Gate(metric, match[1], float(match[2]))
