"""What can be named in a recipe, as `name -> "module:object"`: strings only, so that naming costs no import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from peftcli.errors import RecipeError, did_you_mean

# peft_type -> the method's config dataclass (imports no torch). Its `method` field names the rest.
METHODS = {
    "LORA": "peftcli.methods.lora.config:LoraConfig",
    "IA3": "peftcli.methods.ia3.config:IA3Config",
}

# peft_type -> the method itself: how it wraps layers (imports torch).
ENGINES = {
    "LORA": "peftcli.methods.lora.method:LoraMethod",
    "IA3": "peftcli.methods.ia3.method:IA3Method",
}

# task_type -> the task's class.
TASKS = {
    "CAUSAL_LM": "peftcli.tasks.causal_lm:CausalLM",
}

# data source `type` -> the function from a row to an example.
FORMATS = {
    "text": "peftcli.data.formats.text:text",
    "completion": "peftcli.data.formats.completion:completion",
    "instruction": "peftcli.data.formats.instruction:instruction",
    "chat": "peftcli.data.formats.chat:chat",
}


def resolve(table: dict[str, str], name: str, *, what: str) -> Any:
    """The object that `name` stands for in one of the tables above.

    Raises:
        RecipeError: where the table has no such name; `what` says what kind of name it is.
    """
    if name not in table:
        raise RecipeError(f"unknown {what} {name!r}; {did_you_mean(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
