"""PEFT's tables of methods, by `peft_type`. An entry is imported when it is looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peftcli.adapters.config import PeftConfig, PeftType
from peftcli.registry import ENGINES, METHODS, resolve


class MethodTable(Mapping[PeftType, Any]):
    """What each method has of one kind; keys are PeftTypes, or their names."""

    def __init__(self, look_up: Callable[[str], Any]) -> None:
        self._look_up = look_up

    def __getitem__(self, peft_type: PeftType) -> Any:
        if peft_type not in METHODS:
            raise KeyError(peft_type)
        return self._look_up(str(peft_type))

    def __iter__(self) -> Iterator[PeftType]:
        return map(PeftType, METHODS)

    def __len__(self) -> int:
        return len(METHODS)


PEFT_TYPE_TO_CONFIG_MAPPING = MethodTable(lambda name: resolve(METHODS, name, what="peft_type"))
PEFT_TYPE_TO_TUNER_MAPPING = MethodTable(lambda name: resolve(ENGINES, name, what="peft_type"))
PEFT_TYPE_TO_PREFIX_MAPPING = MethodTable(lambda name: PEFT_TYPE_TO_TUNER_MAPPING[PeftType(name)].prefix)


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """A config from its fields, `peft_type` among them.

    Raises:
        RecipeError: where there is no such method.
        AdapterConfigError: where a field is wrong.
    """
    config: type[PeftConfig] = resolve(METHODS, str(config_dict.get("peft_type")), what="peft_type")
    return config(**config_dict)
