"""What a schema's validation found, in plain words at the place where the recipe says it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from peftcli.errors import nearest
from peftcli.recipe.source import KeyPath, kind

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def settle(location: Iterable[str | int], values: Any) -> KeyPath:
    """A validation error's location as a path in the recipe: without the types' names."""
    path: list[str | int] = []
    node = values
    parts = list(location)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(node, dict) and isinstance(part, str) and (part in node or (last and _is_key(part))):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _is_key(part: str) -> bool:
    """Whether a location's part is a missing key rather than the name of a type, such as `list[str]`."""
    return part.isidentifier() and part not in {"str", "int", "float", "bool"}


def say(errors: list[Any], value: Any) -> str:
    """One sentence for all errors of one key: what it must be, and what it is."""
    wanted: list[str] = []
    for error in errors:
        phrase = _wanted(error)
        if phrase not in wanted:
            wanted.append(phrase)
    sentence = f"must be {' or '.join(wanted)}, not {_shown(value)}"
    choices = re.findall(r"'([^']*)'", errors[0].get("ctx", {}).get("expected", ""))
    close = nearest(value, choices, limit=1) if isinstance(value, str) else []
    return f"{sentence}; did you mean '{close[0]}'?" if close else sentence


def as_source(path: KeyPath, value: Any) -> str:
    """How a file's name that stands where a source belongs is written."""
    is_source = path[:2] in {("data", "train"), ("data", "eval")} and len(path) < 4
    return f"; write a source: {{path: {value}}}" if is_source and isinstance(value, str) and value else ""


def described(path: KeyPath) -> str:
    """What a missing key says: its description in the schema, or an example of it."""
    examples: dict[KeyPath, str] = {
        ("base_model",): "a Hub id, a folder, a .gguf file, or package://IMPORT_NAME/FILE",
        ("task_type",): "e.g. `task_type: CAUSAL_LM`",
        ("adapter",): "e.g. `adapter: {peft_type: LORA, target_modules: all-linear}`",
        ("data",): "e.g. `data: {train: {path: train.jsonl}}`",
        ("training",): "e.g. `training: {output_dir: runs/demo}`",
        ("data", "train"): "e.g. `train: {path: train.jsonl}`",
        ("training", "output_dir"): "name the folder that the run writes, e.g. `output_dir: runs/demo`",
    }
    return examples.get(path, "name a file, a folder or a Hub data set id")


def _wanted(error: Any) -> str:
    name, context = error["type"], error.get("ctx", {})
    if name in _KINDS:
        return _KINDS[name]
    if name in _BOUNDS:
        words, key = _BOUNDS[name]
        return f"{words} {context[key]:g}"
    if name in {"literal_error", "enum"}:
        choices: str = context["expected"]
        return choices.replace("'", "").replace("True", "true").replace("False", "false")
    if name in {"too_short", "string_too_short"}:
        return "at least one" if name == "too_short" else "some text"
    if name == "finite_number":
        return "a finite number"
    message: str = error["msg"]
    return message[0].lower() + message[1:]


def _shown(value: Any) -> str:
    """The value itself where it is short, else what kind of value it is."""
    if value is None:
        return "null"
    if isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)
        return shown if len(shown) <= 60 else f"text of {len(value)} characters"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value!r:.40}"
    return f"an empty {'list' if isinstance(value, list) else 'mapping'}" if not value else kind(value)
