"""The recipe's JSON Schema (draft 2020-12), for editors: from the schema, and the methods' config classes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from peftcli.recipe.adapter import WRITTEN
from peftcli.recipe.gates import PATTERN
from peftcli.recipe.names import OPTIMIZERS, QUANTIZATION, SCHEDULERS, TRACKERS
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import OPTIONS
from peftcli.recipe.training import OLDER
from peftcli.registry import FORMATS, METHODS, TASKS, resolve


def schema_text() -> str:
    """The schema as `peftcli schema` prints it and recipes/recipe.schema.json holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema of a recipe; what only a run can know (cross-field rules, files) is not in it."""
    schema: dict[str, Any] = _untitled(Recipe.model_json_schema())
    definitions, top = schema.pop("$defs"), schema["properties"]
    top["task_type"] = {"enum": list(TASKS), "description": "what the model is trained to do"}
    top["adapter"] = {"description": top["adapter"]["description"], **_adapter()}
    top["quantization"] = _quantization(top["quantization"]["description"])
    top["gates"]["anyOf"] = [
        {"type": "object", "additionalProperties": {"type": "string", "pattern": PATTERN}},
        _NULL,
    ]
    _data(definitions)
    _training(definitions["Training"]["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A peftcli recipe",
        **schema,
        "allOf": [_task(name) for name in TASKS],
        "$defs": definitions,
    }


_NULL = {"type": "null"}
_SOURCES = [
    {"$ref": "#/$defs/Source"},
    {"type": "array", "items": {"$ref": "#/$defs/Source"}, "minItems": 1},
]


def _untitled(node: Any, *, names: bool = False) -> Any:
    """Without the titles that pydantic derives from the names; `names`: the keys here are property names."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _untitled(value, names=key in {"properties", "$defs"} and not names)
        for key, value in node.items()
        if names or key != "title"
    }


def _data(definitions: dict[str, Any]) -> None:
    """A source may stand alone, without a list around it; formats are those of the registry."""
    data, source = definitions["Data"]["properties"], definitions["Source"]["properties"]
    data["train"] = {"description": "a source, or a list of sources", "anyOf": _SOURCES}
    fraction = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    data["eval"] = {
        "description": data["eval"]["description"],
        "default": None,
        "anyOf": [*_SOURCES, fraction, _NULL],
    }
    source["type"]["anyOf"] = [{"enum": list(FORMATS)}, _NULL]


def _training(properties: dict[str, Any]) -> None:
    """Transformers' names for schedules, optimizers and trackers; older names of fields, as deprecated."""
    for name, choices in (("lr_scheduler_type", SCHEDULERS), ("optim", OPTIMIZERS)):
        del properties[name]["type"]
        properties[name]["enum"] = list(choices)
    tracker = {"enum": list(TRACKERS)}
    properties["report_to"]["anyOf"] = [tracker, {"type": "array", "items": tracker}, _NULL]
    for older, newer in OLDER.items():
        properties[older] = {"deprecated": True, "description": f"the older form of {newer}"}
    properties["evaluation_strategy"]["enum"] = properties["eval_strategy"]["enum"]
    properties["warmup_ratio"] |= {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    properties["group_by_length"]["type"] = properties["no_cuda"]["type"] = "boolean"


def _task(name: str) -> dict[str, Any]:
    """The options of a task, in recipes for it."""
    options = _untitled(OPTIONS[name].model_json_schema())
    options.pop("description", None)
    definitions = options.pop("$defs", {})
    return {
        "if": {"properties": {"task_type": {"const": name}}},
        "then": {"properties": {"task": _inlined(options, definitions)}},
    }


def _quantization(description: str) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {} for name in QUANTIZATION}
    fields["load_in_4bit"] = fields["load_in_8bit"] = {"type": "boolean"}
    section = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"description": description, "default": None, "anyOf": [section, _NULL]}


def _adapter() -> dict[str, Any]:
    """One object for each method, chosen by its peft_type."""
    methods = [_method(name) for name in METHODS]
    return (
        methods[0] if len(methods) == 1 else {"type": "object", "required": ["peft_type"], "oneOf": methods}
    )


def _method(peft_type: str) -> dict[str, Any]:
    config = resolve(METHODS, peft_type, what="peft_type")
    hints = get_type_hints(config, include_extras=True)
    properties: dict[str, Any] = {"peft_type": {"const": peft_type}}
    for field in dataclasses.fields(config):
        if field.name not in {*WRITTEN, "peft_type"}:
            properties[field.name] = _field(field, hints[field.name])
    properties["task_type"] = {"enum": list(TASKS), "deprecated": True, "description": "say it at the top"}
    return {
        "type": "object",
        "properties": properties,
        "required": ["peft_type"],
        "additionalProperties": False,
    }


def _field(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    described = {"description": field.metadata["help"]} if "help" in field.metadata else {}
    plain = isinstance(field.default, bool | int | float | str | None)
    default = {"default": field.default} if plain else {}
    schema = TypeAdapter(hint).json_schema()
    return {**described, **default, **_untitled(_inlined(schema, schema.pop("$defs", {})))}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its own definitions (enumerations) in place of the references to them."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return definitions[node["$ref"].rpartition("/")[2]]
    return {key: _inlined(value, definitions) for key, value in node.items()}
