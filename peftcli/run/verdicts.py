"""What became of the gates, for every place that shows them: terminal, job summary, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.recipe.gates import parse_gate


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate and the value that it was held against; None where there is no such metric."""

    metric: str
    bound: str
    value: float | None
    passed: bool

    @property
    def result(self) -> str:
        """In a word."""
        if self.value is None:
            return "not evaluated"
        return "passed" if self.passed else "failed"


def verdicts(gates: Mapping[str, str] | None, metrics: Mapping[str, float]) -> list[Verdict]:
    """Each gate of a recipe against the metrics of an evaluation; one that was not evaluated has not passed.

    Raises:
        ValueError: for a gate that is no comparison with a number.
    """
    found = []
    for metric, text in (gates or {}).items():
        gate, value = parse_gate(metric, text), metrics.get(metric)
        passed = value is not None and gate.holds(value)
        found.append(Verdict(metric, f"{gate.sign} {gate.bound:g}", value, passed))
    return found
