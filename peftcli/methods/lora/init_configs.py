"""Settings of LoRA's initialisations that look at data or quantize: the parts of adapter_config.json under their names.

No torch here: recipes are checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from peftcli.adapters import checks
from peftcli.errors import AdapterConfigError, did_you_mean


@dataclass
class StartConfig:
    """Settings that are checked when they are made, all problems at once.

    Raises:
        AdapterConfigError: with every field that is wrong.
    """

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {}

    def __post_init__(self) -> None:
        if problems := self.problems({name: getattr(self, name) for name in self.CHECKS}):
            raise AdapterConfigError(problems)

    @classmethod
    def problems(cls, value: Any) -> list[tuple[str, str]]:
        """What is wrong with a value for such settings, as (field, message); the field may be empty."""
        if value is None or isinstance(value, cls):
            return []
        if not isinstance(value, Mapping):
            return [("", f"must be a mapping with the fields of {cls.__name__}, not {checks.shown(value)}")]
        known = [item.name for item in fields(cls)]
        found = []
        for name, item in value.items():
            if name in cls.CHECKS:
                found.append((name, cls.CHECKS[name](item)))
            else:
                found.append(
                    (str(name), f"is not a field of {cls.__name__}; {did_you_mean(str(name), known)}")
                )
        return [(name, message) for name, message in found if message]


def _at_least_one(value: Any) -> str:
    return checks.positive(value) or ("" if value >= 1 else f"must be at least 1, not {value}")


def _share(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"must be a number, not {checks.shown(value)}"
    return "" if 0 <= value <= 1 else f"must be from 0 to 1, not {value}"


def _whole(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return "" if is_number else f"must be a whole number, not {checks.shown(value)}"


def _pruned(value: Any) -> str:
    return "" if value is True else "has to stay true: there are no temporary fields to keep on the model"


def _bits(value: Any) -> str:
    taken = value in (4, 8) and not isinstance(value, bool)
    return "" if taken else f"must be 4 (nf4) or 8 (int8), not {checks.shown(value)}"


@dataclass
class EvaConfig(StartConfig):
    """How EVA finds the directions in which layers' inputs vary most, and shares ranks out by them.

    Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", 2024, arXiv:2410.07170.
    """

    rho: float = field(
        default=2.0, metadata={"help": "a layer gets at most rho times its rank; 1: all keep theirs"}
    )
    tau: float = field(
        default=0.99,
        metadata={
            "help": "directions are settled when their cosine to those of the batch before is this much"
        },
    )
    use_label_mask: bool = field(default=True, metadata={"help": "look at positions with a label only"})
    label_mask_value: int = field(default=-100, metadata={"help": "the label that says there is none"})
    whiten: bool = field(default=False, metadata={"help": "divide by the square root of singular values"})
    adjust_scaling_factors: bool = field(
        default=True, metadata={"help": "let lora_alpha grow and shrink with a layer's rank"}
    )

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        "rho": _at_least_one,
        "tau": _share,
        "use_label_mask": checks.boolean,
        "label_mask_value": _whole,
        "whiten": checks.boolean,
        "adjust_scaling_factors": checks.boolean,
    }


@dataclass
class LoftQConfig(StartConfig):
    """How LoftQ rounds the base, and how often rounding and the adapter take turns.

    Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", 2023, arXiv:2310.08659.
    """

    loftq_bits: int = field(default=4, metadata={"help": "4 (nf4) or 8 (int8)"})
    loftq_iter: int = field(default=1, metadata={"help": "turns of rounding and fitting the adapter"})

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {"loftq_bits": _bits, "loftq_iter": checks.size}


@dataclass
class LoraGAConfig(StartConfig):
    """Which of the gradient's singular vectors LoRA-GA takes, and how they are scaled.

    Wang et al., "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", 2024, arXiv:2407.05000.
    """

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = field(
        default="ArB2r",
        metadata={
            "help": "which of the first 2 r singular vectors: ArBr (A odd ones, B even ones), A2rBr (A the second r, "
            "B the first), ArB2r (the other way round), or random"
        },
    )
    scale: Literal["gd_scale", "unit", "stable", "weight_svd"] = field(
        default="stable", metadata={"help": "stable (by the number of outputs), weight_svd, gd_scale or unit"}
    )
    stable_gamma: int = field(default=16, metadata={"help": "stable divides by its square root"})

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        "direction": checks.one_of("ArBr", "A2rBr", "ArB2r", "random"),
        "scale": checks.one_of("gd_scale", "unit", "stable", "weight_svd"),
        "stable_gamma": checks.positive,
    }


@dataclass
class CordaConfig(StartConfig):
    """Which directions of the weight, seen through the covariance of its inputs, CorDA takes into the adapter.

    Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models", 2024, arXiv:2406.05223.
    """

    cache_file: str | None = field(
        default=None,
        metadata={"help": "a file that keeps the decompositions: read where it is there, else written"},
    )
    covariance_file: str | None = field(
        default=None,
        metadata={"help": "a file that keeps the covariances: read where it is there, else written"},
    )
    corda_method: Literal["ipm", "kpm"] = field(
        default="ipm",
        metadata={
            "help": "ipm: the directions that the rows use most, to learn fast; kpm: those that they use least, to "
            "keep what the base knows of such rows"
        },
    )
    verbose: bool = field(default=False, metadata={"help": "show a bar while decomposing"})
    use_float16_for_covariance: bool = field(
        default=False, metadata={"help": "add covariances up in the inputs' own type"}
    )
    prune_temporary_fields: bool = field(default=True, metadata={"help": "always true"})

    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        "cache_file": checks.text,
        "covariance_file": checks.text,
        "corda_method": checks.one_of("ipm", "kpm"),
        "verbose": checks.boolean,
        "use_float16_for_covariance": checks.boolean,
        "prune_temporary_fields": _pruned,
    }


# LoraConfig's fields for them; each is for the initialisation that it is named after.
START_CONFIGS: Mapping[str, type[StartConfig]] = {
    "corda_config": CordaConfig,
    "eva_config": EvaConfig,
    "loftq_config": LoftQConfig,
    "lora_ga_config": LoraGAConfig,
}
