"""Rules of what a task can have: its options, settings of data and of the adapter, and what has no meaning for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from peftcli.errors import did_you_mean
from peftcli.recipe.problems import say, settle
from peftcli.recipe.schema import Data, Recipe
from peftcli.recipe.source import KeyPath
from peftcli.recipe.tasks import OPTIONS, ROWS
from peftcli.registry import METHODS

Finding = tuple[KeyPath, str]
Rule = Callable[[Recipe], Iterator[Finding]]

TASK_RULES: list[tuple[tuple[str, ...], Rule]] = []


def _rule(*keys: str) -> Callable[[Rule], Rule]:
    """Registers a rule with the keys that it reads."""

    def register(rule: Rule) -> Rule:
        TASK_RULES.append((keys, rule))
        return rule

    return register


@_rule("task_type", "task")
def _task_options(recipe: Recipe) -> Iterator[Finding]:
    options = OPTIONS.get(recipe.task_type)
    if options is None:
        return
    try:
        options.model_validate(recipe.task)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = settle(("task", *item["loc"]), {"task": recipe.task})
            if item["type"] == "extra_forbidden":
                known = list(options.model_fields)
                hint = did_you_mean(str(path[-1]), known) if known else "it has none"
                yield path, f"is no option of {recipe.task_type}; {hint}"
            elif item["type"] == "task":  # what the options say of one another
                name, _, message = str(item["msg"]).partition(" ")
                yield ("task", name), message
            else:
                yield path, say([item], item["input"])


@_rule("task_type", "data")
def _data_of_task(recipe: Recipe) -> Iterator[Finding]:
    options = OPTIONS.get(recipe.task_type)
    if options is None:
        return
    for name, field in Data.model_fields.items():
        if name not in {*ROWS, *options.DATA} and getattr(recipe.data, name) != field.default:
            yield ("data", name), f"has no meaning for {recipe.task_type}; leave it out"


@_rule("task_type", "adapter")
def _adapter_of_task(recipe: Recipe) -> Iterator[Finding]:
    options = OPTIONS.get(recipe.task_type)
    method = recipe.adapter.get("peft_type")
    if options is None or method not in METHODS:
        return
    if options.METHODS and method not in options.METHODS:
        yield (
            ("adapter", "peft_type"),
            f"{recipe.task_type} cannot be trained with {method}; choose {' or '.join(options.METHODS)}",
        )
        return
    for name, reason in options.ADAPTER.items():
        if recipe.adapter.get(name) not in (None, False, "none"):
            yield ("adapter", name), f"is not for {recipe.task_type}: {reason}; leave it out"


@_rule("task_type", "attn_implementation", "quantization", "trust_remote_code", "training")
def _meaningless(recipe: Recipe) -> Iterator[Finding]:
    options = OPTIONS.get(recipe.task_type)
    for name in () if options is None else options.MEANINGLESS:
        section, _, key = name.rpartition(".")
        place: Any = getattr(recipe, section) if section else recipe
        if getattr(place, key) != type(place).model_fields[key].default:
            yield (*name.split("."),), f"has no meaning for {recipe.task_type}; leave it out"


@_rule("task_type", "adapter.task_type")
def _one_task(recipe: Recipe) -> Iterator[Finding]:
    if recipe.adapter.get("task_type", recipe.task_type) != recipe.task_type:
        yield (
            ("adapter", "task_type"),
            f"is not the recipe's task_type, {recipe.task_type}; leave it out here",
        )
