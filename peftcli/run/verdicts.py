"""What became of the gates: judged, enforced, and shown on the terminal, in a job's summary, in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.errors import GateError, RecipeError
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


def judge(gates: Mapping[str, str] | None, metrics: Mapping[str, float]) -> dict[str, bool]:
    """Which gates hold, by what they say: `eval_loss < 1.2`.

    Raises:
        RecipeError: a gate names a metric that was not evaluated.
    """
    held = {}
    for metric, text in (gates or {}).items():
        if metric not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise RecipeError(f"gates.{metric}: it was not evaluated; evaluated are: {known}")
        held[f"{metric} {text}"] = parse_gate(metric, text).holds(metrics[metric])
    return held


def enforce(held: Mapping[str, bool], metrics: Mapping[str, float], *, where: str = "") -> None:
    """Ends a command whose gates failed; `where` is told at the end.

    Raises:
        GateError: naming each gate that failed, with the value that was reached.
    """
    failed = [
        f"{gate}, but it is {metrics[gate.split()[0]]:.6g}" for gate, holds in held.items() if not holds
    ]
    if failed:
        raise GateError(f"gate failed: {'; '.join(failed)}{where}")
