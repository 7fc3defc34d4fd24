"""The recipe's `adapter` section: adapter_config.json's fields, checked by the method's own config class."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from peftcli.errors import AdapterConfigError, nearest
from peftcli.recipe.schema import Recipe
from peftcli.recipe.source import Document, kind
from peftcli.registry import METHODS, resolve

# Fields of adapter_config.json that a run writes by itself.
WRITTEN = {
    "auto_mapping": "it is written by the run; delete it",
    "base_model_name_or_path": "it is written by the run; say `base_model` (and `base_model_id`) at the top",
    "inference_mode": "it is written by the run: an adapter in training is not in inference mode; delete it",
    "peft_version": "it is written by the run; delete it",
    "revision": "it is written by the run; say `revision` at the top",
}


def adapter_config(recipe: Recipe) -> Any:
    """The method's config that the recipe's `adapter` section describes."""
    fields = {key: value for key, value in recipe.adapter.items() if key not in {"peft_type", "task_type"}}
    config = resolve(METHODS, recipe.adapter["peft_type"], what="peft_type")
    return config(task_type=_task_type(recipe.task_type), **fields)


def known_fields(section: Any) -> tuple[list[str], list[str]]:
    """The fields that the `adapter` section may have, and those that are refused with a reason of their own.

    They are those of the section's peft_type, or of the method that was probably meant.
    """
    named = section.get("peft_type") if isinstance(section, dict) else None
    config = resolve(METHODS, _meant(named), what="peft_type")
    names = [field.name for field in dataclasses.fields(config)]
    return [name for name in names if name not in WRITTEN], [*WRITTEN, *config.DEFERRED]


def check_adapter(document: Document, values: dict[str, Any]) -> None:
    """Notes what is wrong with the fields of `adapter`; `values` is the section's content."""
    peft_type = values.get("peft_type")
    if peft_type is None:
        document.add(("adapter", "peft_type"), f"is missing; supported: {_methods()}")
    elif not isinstance(peft_type, str) or peft_type not in METHODS:
        shown = f"'{peft_type}'" if isinstance(peft_type, str) else kind(peft_type)
        document.add(("adapter", "peft_type"), f"{shown} is not supported; {_choice(peft_type)}")
    fields = {key: value for key, value in values.items() if key not in {"peft_type", "task_type"}}
    for name in [name for name in fields if name in WRITTEN]:
        document.add(("adapter", name), WRITTEN[name])
        del fields[name]
    config = resolve(METHODS, _meant(peft_type), what="peft_type")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            config(**fields)
    except AdapterConfigError as error:
        for name, message in error.fields:
            document.add(("adapter", *name.split(".")), message)
        return
    for warning in said:
        name, _, message = str(warning.message).partition(" ")
        # What a file may say to no effect, a recipe may not.
        if name in fields and message.startswith("does nothing"):
            document.add(("adapter", name), f"{message}; leave it out")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _meant(peft_type: Any) -> str:
    """The method that is named, or was probably meant: the rest of the section is then checked as its."""
    close = nearest(str(peft_type).upper(), METHODS, limit=1)
    return close[0] if close else next(iter(METHODS))


def _choice(peft_type: Any) -> str:
    named = str(peft_type).upper()
    return f"did you mean '{named}'?" if named in METHODS else f"supported: {_methods()}"


def _methods() -> str:
    return ", ".join(METHODS)


def _task_type(task_type: str) -> str | None:
    """PEFT knows six task types; an adapter for another task says none, as PEFT's own do."""
    known = {"CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"}
    return task_type if task_type in known else None
