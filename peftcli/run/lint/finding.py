"""One thing about an adapter that a program will not like, and all of them together."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peftcli.run.adapter import Adapter
from peftcli.run.answers import FindingAnswer, LintAnswer


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and what to do.

    Attributes:
        where: the field of adapter_config.json, or the tensor.
        message: what the program does with it.
        advice: what to do.
        is_error: the adapter will not load there, or will not do what it was trained to; else a remark.
    """

    where: str
    message: str
    advice: str
    is_error: bool = True

    def line(self) -> str:
        """For a person."""
        return f"{'error' if self.is_error else 'warning'}: {self.where}: {self.message}; {self.advice}"

    def as_dict(self) -> FindingAnswer:
        """For `--json`."""
        return {
            "severity": "error" if self.is_error else "warning",
            "where": self.where,
            "message": self.message,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A program that loads adapters: its name for people, what it does not take, and how to call it."""

    name: str
    findings: Callable[[Adapter], Iterator[Finding]]
    commands: Callable[[Adapter], list[str]]


@dataclass(frozen=True, slots=True)
class Linted:
    """What a program will do with an adapter; `commands` are empty where it will not take it."""

    folder: Path
    target: str
    findings: list[Finding]
    commands: list[str]

    @property
    def loads(self) -> bool:
        """Whether nothing was found that is an error."""
        return not any(finding.is_error for finding in self.findings)

    def as_dict(self) -> LintAnswer:
        """For `--json`."""
        return {
            "ok": self.loads,
            "folder": str(self.folder),
            "target": self.target,
            "findings": [finding.as_dict() for finding in self.findings],
            "commands": self.commands,
        }


def merging(folder: Path) -> str:
    """The advice that helps with most findings: a merged model has nothing special about it."""
    place = shlex.quote(str(folder))
    return f"merge it: peftcli merge --adapter {place} --output {shlex.quote(f'{folder}-merged')} --verify"
