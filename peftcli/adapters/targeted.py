"""Configs that name layers: the fields by which most methods say where their adapters go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftConfig


@dataclass
class TargetsConfig(PeftConfig):
    """An adapter on layers that are named, and modules that are trained whole beside it."""

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "which layers to adapt: a list of names (or endings of names), a regular expression "
            "over whole names, or all-linear; default: by architecture"
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save whole, such as a new head"}
    )

    # Other default targets than LoRA's, by the base's model_type.
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = {}
    # For a base that is not there: an expression for the names of the classes to adapt; "" for LoRA's way.
    DEFAULT_CLASSES: ClassVar[str] = ""
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PeftConfig.CHECKS,
        "target_modules": checks.optional(checks.names_or_expression),
        "modules_to_save": checks.optional(checks.names),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value: Any = getattr(self, name, None)
            if isinstance(value, set | frozenset | tuple):
                setattr(self, name, sorted(value))

    def to_dict(self) -> dict[str, Any]:
        """As every config's; lists that name a set of modules are sorted."""
        values = super().to_dict()
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if isinstance(values.get(name), list):
                values[name] = sorted(set(values[name]))
        return values


@dataclass
class TargetedConfig(TargetsConfig):
    """As above, and some of the layers that are named may be left out; some of PEFT's configs lack this."""

    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "layers not to adapt: names or a regular expression"}
    )

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **TargetsConfig.CHECKS,
        "exclude_modules": checks.optional(checks.names_or_expression),
    }


@dataclass
class LayersConfig(TargetsConfig):
    """An adapter on named layers, of which only some numbers may be meant."""

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "adapt only the layers with these numbers"}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "the name of the list of layers that the numbers count in"}
    )

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **TargetsConfig.CHECKS,
        "layers_to_transform": checks.optional(checks.indices),
        "layers_pattern": checks.optional(checks.names_or_expression),
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """A regular expression names layers itself, so layer numbers beside it would be ignored."""
        problems = super().conflicts()
        if isinstance(self.target_modules, str):
            reason = "works only where target_modules is a list of names"
            if self.layers_to_transform is not None:
                problems.append(("layers_to_transform", reason))
            if self.layers_pattern:
                problems.append(("layers_pattern", reason))
        elif self.layers_pattern and self.layers_to_transform is None:
            problems.append(("layers_pattern", "needs layers_to_transform beside it"))
        return problems


@dataclass
class LayeredConfig(LayersConfig, TargetedConfig):
    """The same, and some of the layers that are named may be left out."""

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {**TargetedConfig.CHECKS, **LayersConfig.CHECKS}
