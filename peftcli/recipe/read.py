"""A recipe from its file: every problem found at once, each with its place and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftcli.errors import Problem, RecipeError
from peftcli.recipe.adapter import check_adapter, known_fields
from peftcli.recipe.hints import level_of, levels, unknown_key
from peftcli.recipe.older import modernize
from peftcli.recipe.overrides import apply_overrides
from peftcli.recipe.problems import as_source, described, say, settle
from peftcli.recipe.rules import findings
from peftcli.recipe.schema import Recipe
from peftcli.recipe.source import Document, KeyPath, read_document

# What stands in for a required value that is missing or wrong, so that the rest can still be checked.
_STAND_IN: dict[str, Any] = {
    "base_model": "-",
    "task_type": "CAUSAL_LM",
    "adapter": {},
    "data": {"train": {"path": "-"}},
    "training": {"output_dir": "-"},
}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, with the command line's `a.b=value` overrides on top.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    document = read_document(path)
    apply_overrides(document, overrides)
    return check_document(document)


def check_document(document: Document) -> Recipe:
    """The document as a recipe.

    Raises:
        RecipeError: with every problem of the recipe.
    """
    modernize(document)
    recipe, errors = _validate(document.values)
    broken = set(errors) | {tuple(problem.key.split(".")) for problem in document.problems}
    _say_errors(document, errors)
    if recipe is None:
        recipe = _partial(document.values, errors)
    for path, message in findings(recipe, broken):
        document.add(settle(path, document.values), message)
    if document.problems:
        raise RecipeError(problems=sorted(dict.fromkeys(document.problems), key=_position))
    return recipe


def _validate(values: dict[str, Any]) -> tuple[Recipe | None, dict[KeyPath, list[Any]]]:
    """The recipe where the schema takes the values, and the schema's errors by the key that has them."""
    errors: dict[KeyPath, list[Any]] = {}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        recipe = None
        for item in error.errors(include_url=False):
            errors.setdefault(settle(item["loc"], values), []).append(item)
    return recipe, errors


def _say_errors(document: Document, errors: dict[KeyPath, list[Any]]) -> None:
    """Notes the schema's errors and the adapter's; no key is missing that an unknown one was meant for."""
    adapter = document.values.get("adapter")
    fields, refused = known_fields(adapter)
    known = levels(fields)
    unknown = [path for path, items in errors.items() if items[0]["type"] == "extra_forbidden"]
    if isinstance(adapter, dict):
        unknown += [("adapter", key) for key in adapter if key not in {*fields, *refused}]
    meant: set[str] = set()
    for path in unknown:
        message, target = unknown_key(path, known)
        document.add(path, message)
        meant.add(target)
    if isinstance(adapter, dict) and "adapter.peft_type" not in meant:
        check_adapter(
            document, {key: value for key, value in adapter.items() if ("adapter", key) not in unknown}
        )
    for path, items in errors.items():
        if items[0]["type"] == "missing":
            if not any(
                f"{target}.".startswith(f"{level_of(path)}.{path[-1]}.".lstrip(".")) for target in meant
            ):
                document.add(path, f"is missing; {described(path)}")
        elif path not in unknown:
            value = _value_at(document.values, path)
            document.add(path, say(items, value) + as_source(path, value))


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _partial(values: dict[str, Any], errors: dict[KeyPath, list[Any]]) -> Recipe:
    """A recipe of the values that are well-formed, with stand-ins for required ones that are not."""
    sound = deepcopy(values)
    for path in errors:
        # A wrong item makes its whole list (of sources) wrong, so nothing below the second level is cut out.
        head, rest = path[:1], path[1:2]
        section = sound if not rest else sound.get(str(head[0]))
        if isinstance(section, dict):
            section.pop(str((rest or head)[0]), None)
    for key, stand_in in _STAND_IN.items():
        given = sound.get(key)
        if isinstance(stand_in, dict) and isinstance(given, dict):
            sound[key] = {**stand_in, **given}
        elif given is None:
            sound[key] = stand_in
    return Recipe.model_validate(sound)


def _position(problem: Problem) -> tuple[int, int]:
    """Line and column, so that problems come in the order of the file; the command line's come last."""
    match = re.search(r":(\d+):(\d+)$", problem.where)
    if match is None:
        return (0, 0) if not problem.where.startswith("--set") else (2**31, 0)
    return int(match[1]), int(match[2])
