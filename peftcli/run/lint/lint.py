"""`peftcli check DIR --target PROGRAM`: whether the program loads the adapter, and does with it what training did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from peftcli.run.adapter import Adapter, read_adapter
from peftcli.run.lint import llamacpp, peft, vllm
from peftcli.run.lint.finding import Finding, Linted, Target
from peftcli.run.lint.lora import config_findings

TARGETS: dict[str, Target] = {
    "vllm": vllm.TARGET,
    "llamacpp": llamacpp.TARGET,
    "peft": peft.TARGET,
}


def lint(folder: Path, target: str) -> Linted:
    """Checks the adapter in a folder for a program.

    Raises:
        ModelError: there is no adapter in it, or its files cannot be read.
    """
    adapter = read_adapter(folder)
    program = TARGETS[target]
    found = list(config_findings(adapter)) or [*program.findings(adapter), *_value_findings(adapter)]
    result = Linted(folder, target, found, [])
    return Linted(folder, target, found, program.commands(adapter)) if result.loads else result


def _value_findings(adapter: Adapter) -> Iterator[Finding]:
    if broken := adapter.not_finite():
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        yield Finding(f"{broken[0]}{more}", "holds values that are not finite", "take an earlier checkpoint")
