"""Every error a user can cause, with the exit status of the command that meets it.

    PeftcliError                     1   (never raised itself)
    ├── RecipeError                  2   a recipe, flag or argument is wrong; carries every problem found
    ├── DataError                    3   rows that cannot be read, encoded or trained on
    ├── ModelError                   4   a base model that cannot be had, or is not the one meant
    │   └── AdapterError             4   an adapter's config or weights (also a ValueError, as in PEFT)
    │       ├── AdapterConfigError   4   fields of an adapter config, each with its name
    │       └── NoMatchingPeftModuleError 4  a config that names no module of the model
    ├── DivergedError                5   the loss became NaN or infinite
    ├── GateError                    6   a quality gate of the recipe failed
    ├── MemoryLimitError             7   out of memory
    ├── HubError                     8   the Hub or the network
    └── Interrupted                130   Ctrl-C or SIGTERM, after a checkpoint was saved

Only `cli/` ends an error: it prints `error: WHERE: what is wrong; what to do` and exits with the status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


class PeftcliError(Exception):
    """The root: something the user can mend. `where` is a file (with line and column), a key, a row."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where

    def lines(self) -> list[str]:
        """One line a problem, without the word `error`."""
        return [str(self)]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a recipe: where it stands (`file:line:column`), which key, what and what to do."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class RecipeError(PeftcliError):
    """A recipe, flag or argument is wrong. All problems of a recipe come in one error."""

    exit_status = 2

    def __init__(self, message: str = "", *, where: str = "", problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems) or (Problem(where, "", message),)
        super().__init__("\n".join(map(str, self.problems)))

    def lines(self) -> list[str]:
        """One line a problem."""
        return [str(problem) for problem in self.problems]


class DataError(PeftcliError):
    """Rows that cannot be read, encoded or trained on."""

    exit_status = 3


class ModelError(PeftcliError):
    """A base model that cannot be had, or is not the one that is meant."""

    exit_status = 4


class AdapterError(ModelError, ValueError):
    """An adapter that cannot be built, read or written."""


class AdapterConfigError(AdapterError):
    """Fields of an adapter config that are wrong: `fields` holds (name, message) pairs, all that were found."""

    def __init__(self, fields: Sequence[tuple[str, str]], *, where: str = "") -> None:
        self.fields = tuple(fields)
        super().__init__("; ".join(f"{name}: {message}" for name, message in self.fields), where=where)


class NoMatchingPeftModuleError(AdapterError):
    """A config whose targets name no module of the model; PEFT's name, as people's code catches it."""


# PEFT's name for what is wrong with an adapter.
PeftError = AdapterError


class PeftWarning(UserWarning):
    """Something about an adapter that is probably not meant."""


class DivergedError(PeftcliError):
    """The loss became NaN or infinite, at `step`."""

    exit_status = 5

    def __init__(self, message: str, *, step: int, where: str = "") -> None:
        super().__init__(message, where=where)
        self.step = step


class GateError(PeftcliError):
    """A quality gate of the recipe failed."""

    exit_status = 6


class MemoryLimitError(PeftcliError):
    """The machine or the device ran out of memory."""

    exit_status = 7


class HubError(PeftcliError):
    """The Hub or the network refused, or could not be reached."""

    exit_status = 8


class Interrupted(PeftcliError):  # noqa: N818  (it is the user's wish, no error of theirs)
    """Ctrl-C or SIGTERM: the run stopped after saving a checkpoint."""

    exit_status = 130


def nearest(name: str, choices: Iterable[str], *, limit: int = 3) -> list[str]:
    """The choices that look most like `name`, best first; empty where none is close."""
    return difflib.get_close_matches(name, list(choices), n=limit, cutoff=0.6)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest choice, or the list of choices where none is near."""
    options = sorted(choices)
    close = nearest(name, options, limit=1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(options)}"
