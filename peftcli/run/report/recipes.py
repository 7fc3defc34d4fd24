"""Recipes of a report: what they change of the defaults, and where runs differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from peftcli.recipe.schema import Data, Recipe, Source
from peftcli.recipe.training import Training
from peftcli.run.lock import Lock, flatten

_LEVELS: dict[str, type[BaseModel]] = {"": Recipe, "data.": Data, "training.": Training}
_SOURCE = re.compile(r"data\.(?:train|eval)\.\d+\.(\w+)")
# Where a run writes is no difference in what it does.
_ELSEWHERE = (
    "recipe.training.output_dir",
    "recipe.training.overwrite_output_dir",
    "recipe.training.run_name",
)


def changed_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a resolved recipe that are not their defaults, by dotted key."""
    defaults = {
        f"{level}{name}": field.default
        for level, model in _LEVELS.items()
        for name, field in model.model_fields.items()
    }
    of_source = {name: field.default for name, field in Source.model_fields.items()}
    changed = {}
    for key, value in flatten(recipe).items():
        source = _SOURCE.fullmatch(key)
        default = (
            of_source.get(source[1], PydanticUndefined) if source else defaults.get(key, PydanticUndefined)
        )
        if default is PydanticUndefined or value != default:
            changed[key] = value
    return changed


def differences(locks: Sequence[Lock]) -> dict[str, list[Any]]:
    """What is not the same in all runs, by dotted key: recipe, base, data, versions."""
    values = [flatten(lock.as_dict()) for lock in locks]
    keys = dict.fromkeys(key for each in values for key in each if key not in _ELSEWHERE)
    # `gates: null` in one run and gates in another differ in the gates.
    above = {key.rsplit(".", level)[0] for key in keys for level in range(1, key.count(".") + 1)}
    rows = {key: [each.get(key) for each in values] for key in keys if key not in above}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
