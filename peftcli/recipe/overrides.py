"""`--set a.b=value`: the command line's word, which beats the file's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftcli.errors import RecipeError
from peftcli.recipe.source import MAX_DEPTH, Document, KeyPath, kind, parse, scalar


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Puts each `a.b=value` into the document; a problem of such a value is then said of its `--set`.

    Raises:
        RecipeError: where an override is no `a.b=value`, or leads through a value that has no keys.
    """
    for override in overrides:
        where = f"--set {_short(override)}"
        path, value = _split(override, where)
        document.values, place = _put(document.values, path, value, where)
        for stale in [known for known in document.places if known[: len(place)] == place]:
            del document.places[stale]
        document.places[place] = where
        for length in range(1, len(place)):  # keys that the override brought into being
            document.places.setdefault(place[:length], where)


def _split(override: str, where: str) -> tuple[KeyPath, Any]:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError("write it as --set a.b=value, e.g. --set training.learning_rate=1e-4", where=where)
    return tuple(parts), _value(text.strip(), where)


def _value(text: str, where: str) -> Any:
    """Brackets, braces and quotes are YAML's; all else is one plain value as it stands, with `: ` and `#`."""
    if text[:1] not in {"[", "{", '"', "'"}:
        try:
            return scalar(text)
        except ValueError as error:
            raise RecipeError(f"this value cannot be read ({error})", where=where) from None
    try:
        value, _, problems = parse(text, where)
    except RecipeError as error:
        message = (
            f"{error.problems[0].message}; text that begins with {text[0]} is read as YAML, so quote it whole"
        )
        raise RecipeError(message, where=where) from None
    if problems:
        raise RecipeError(problems[0].message, where=where)
    return value


def _put(node: Any, path: KeyPath, value: Any, where: str) -> tuple[Any, KeyPath]:
    """`node` with `value` at `path`, and the path where it came to stand."""
    if not path:
        return value, ()
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        return _put_in_list(node, path, value, where)
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise RecipeError(
            f"there is no '{head}' to set in {kind(node)}; set the whole value instead", where=where
        )
    if str(head).isdigit() and head not in node and node and rest:
        return _put(node, rest, value, where)  # `data.train.0.path` where train is one mapping
    child, place = _put(node.get(head), rest, value, where)
    return {**node, head: child}, (head, *place)


def _put_in_list(items: list[Any], path: KeyPath, value: Any, where: str) -> tuple[Any, KeyPath]:
    """A list's item by its number; without one where the list has only one item (`data.train.path`)."""
    head, rest = path[0], path[1:]
    if not str(head).isdigit():
        if len(items) != 1:
            raise RecipeError(f"the list has {len(items)} items; give the number of one, from 0", where=where)
        head, rest = "0", path
    index = int(head)
    if index >= len(items):
        raise RecipeError(
            f"the list has {len(items)} items; the last is number {len(items) - 1}", where=where
        )
    child, place = _put(items[index], rest, value, where)
    return [*items[:index], child, *items[index + 1 :]], (index, *place)


def _short(override: str) -> str:
    return override if len(override) <= 60 else f"{override[:57]}…"
