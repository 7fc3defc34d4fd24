"""The recipes that come with peftcli: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from peftcli.errors import RecipeError, did_you_mean


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A recipe's name, and its first comment line."""

    name: str
    description: str
    path: Path


def folder() -> Path:
    """Where the recipes are.

    Raises:
        RecipeError: where the installation has none.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "recipes", package.parent / "recipes"):
        if any(candidate.glob("*.yaml")):
            return candidate
    raise RecipeError("this installation of peftcli has no recipes; install it again")


def built_in() -> list[BuiltIn]:
    """All built-in recipes, by name."""
    paths = sorted(folder().glob("*.yaml"), key=lambda path: path.stem)
    return [BuiltIn(path.stem, _description(path), path) for path in paths]


def read_built_in(name: str) -> str:
    """The text of a built-in recipe.

    Raises:
        RecipeError: where there is none of this name.
    """
    found = {recipe.name: recipe.path for recipe in built_in()}
    wanted = name.removesuffix(".yaml")
    if wanted not in found:
        raise RecipeError(f"there is no built-in recipe '{name}'; {did_you_mean(wanted, found)}")
    return found[wanted].read_text(encoding="utf-8")


def rows_elsewhere(text: str) -> list[Path]:
    """The files of rows that come with a built-in recipe, where they are not at the place that it names."""
    named = re.findall(r"path: recipes/([\w.-]+)", text)
    return [folder() / name for name in named if not Path("recipes", name).is_file()]


def _description(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("yaml-language-server")), "")
