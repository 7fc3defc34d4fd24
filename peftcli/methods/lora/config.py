"""What a LoRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType, TaskType
from peftcli.adapters.targeted import LayeredConfig
from peftcli.adapters.token_config import TokensConfig
from peftcli.errors import did_you_mean
from peftcli.methods.lora.init_configs import (
    START_CONFIGS,
    CordaConfig,
    EvaConfig,
    LoftQConfig,
    LoraGAConfig,
    StartConfig,
)

INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga", "loftq")
LATER_INITIALISATIONS = ("mica",)
BIASES = ("none", "all", "lora_only")


def _initialisation(value: Any) -> str:
    if isinstance(value, bool) or (isinstance(value, str) and value in INITIALISATIONS):
        return ""
    if not isinstance(value, str):
        return f"must be true, false or a name, not {checks.shown(value)}"
    if re.fullmatch(r"pissa_niter_\d{1,4}", value):
        return ""
    if value in LATER_INITIALISATIONS:
        return f"{value!r} is not supported yet; choose true, false or one of: {', '.join(INITIALISATIONS)}"
    return f"{value!r} is not an initialisation; {did_you_mean(value, [*INITIALISATIONS, 'pissa_niter_16'])}"


def _or_none(check: checks.Check) -> checks.Check:
    """Nothing, no names, or what passes `check`."""
    return lambda value: "" if value is None or value in ([], (), set()) else check(value)


def _bias(value: Any) -> str:
    return "" if value in BIASES else f"{checks.shown(value)} is not one of: {', '.join(BIASES)}"


def _tokens(value: Any) -> str:
    """A sequence of token ids, in which one may come twice."""
    if not isinstance(value, list) or not value:
        return f"must be a list of token ids, not {checks.shown(value)}"
    wrong = [item for item in value if isinstance(item, bool) or not isinstance(item, int) or item < 0]
    return f"must hold token ids from 0 up, not {checks.shown(wrong[0])}" if wrong else ""


@dataclass
class LoraConfig(TokensConfig, LayeredConfig):
    """One LoRA adapter: W x becomes W x + scaling · B A x; A (r, in) and B (out, r) are trained, W is not."""

    r: int = field(default=8, metadata={"help": "the rank: how many dimensions the update has"})
    lora_alpha: float = field(default=8, metadata={"help": "the update is scaled by lora_alpha / r"})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "share of the adapter's inputs that training zeroes"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "scale by lora_alpha / sqrt(r) (rank-stabilised)"}
    )
    init_lora_weights: bool | str = field(
        default=True,
        metadata={
            "help": "true (the update starts at zero), false (random), gaussian, orthogonal, olora, pissa, "
            "pissa_niter_N, loftq, or from the training rows: eva, corda, lora_ga"
        },
    )
    eva_config: EvaConfig | None = field(
        default=None, metadata={"help": "for init_lora_weights eva: how ranks are shared out"}
    )
    corda_config: CordaConfig | None = field(
        default=None, metadata={"help": "for init_lora_weights corda: which directions are taken"}
    )
    lora_ga_config: LoraGAConfig | None = field(
        default=None, metadata={"help": "for init_lora_weights lora_ga: what is taken of the gradient"}
    )
    loftq_config: LoftQConfig | dict[str, int] = field(
        default_factory=dict, metadata={"help": "for init_lora_weights loftq: how the base is rounded"}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "other ranks for some layers: name or regular expression: r"}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "other lora_alpha for some layers: name or regular expression: lora_alpha"},
    )
    target_parameters: list[str] | None = field(
        default=None,
        metadata={
            "help": "parameters to adapt by themselves, such as experts' stacked weights: names or endings of names"
        },
    )
    use_dora: bool = field(
        default=False, metadata={"help": "train the weights' magnitudes apart from their directions (DoRA)"}
    )

    alora_invocation_tokens: list[int] | None = field(
        default=None,
        metadata={
            "help": "ids of the tokens that call the adapter (aLoRA): it acts from the last place on where a row has "
            "them, and what comes before is the base's own"
        },
    )

    METHOD: ClassVar[PeftType | None] = PeftType.LORA
    DEFERRED: ClassVar[Mapping[str, Any]] = {
        "arrow_config": None,
        "kasa_config": None,
        "layer_replication": None,
        "lora_bias": False,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "monteclora_config": None,
        "qalora_group_size": 16,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "use_bdlora": None,
        "use_qalora": False,
        "velora_config": None,
    }
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        **TokensConfig.CHECKS,
        "r": checks.rank,
        "lora_alpha": checks.positive,
        "lora_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": _bias,
        "use_rslora": checks.boolean,
        "init_lora_weights": _initialisation,
        "rank_pattern": checks.pattern_of(checks.rank),
        "alpha_pattern": checks.pattern_of(checks.positive),
        "target_modules": _or_none(checks.names_or_expression),
        "target_parameters": _or_none(lambda value: checks.names(value).replace("module", "parameter")),
        "use_dora": checks.boolean,
        "alora_invocation_tokens": checks.optional(_tokens),
    }

    @property
    def changes_base(self) -> bool:
        """Whether it starts with a part of the base's weights."""
        start = str(self.init_lora_weights)
        return start in {"olora", "corda", "lora_ga"} or start.startswith("pissa")

    @property
    def reads_inputs(self) -> bool:
        """Whether it acts from certain tokens on."""
        return self.alora_invocation_tokens is not None

    @property
    def never_merges(self) -> str:
        """With aLoRA: the tokens before must not see it."""
        return "acts only from its alora_invocation_tokens on" if self.reads_inputs else ""

    @property
    def starts_from_data(self) -> bool:
        """Whether the training rows say how it starts."""
        return self.init_lora_weights in {"eva", "corda", "lora_ga"}

    def plain_start(self) -> Self:
        """With A drawn at random and B zero."""
        unused: dict[str, Any] = dict.fromkeys(START_CONFIGS)
        return replace(self, init_lora_weights=True, **unused)

    def conflicts(self) -> list[tuple[str, str]]:
        """Settings of an initialisation are checked as the config itself is; parameters have no inputs or outputs."""
        problems = super().conflicts()
        if not self.target_modules and self.target_modules is not None and not self.target_parameters:
            problems.append(
                ("target_modules", "is an empty list; name a module, or parameters in target_parameters")
            )
        for name in ("lora_dropout", "use_dora", "fan_in_fan_out") if self.target_parameters else ():
            if getattr(self, name):
                problems.append((name, "does not go together with target_parameters; leave it out"))
        if self.reads_inputs:
            if self.task_type not in (None, TaskType.CAUSAL_LM):
                problems.append(
                    ("alora_invocation_tokens", "is for models with the task_type CAUSAL_LM only")
                )
            for name in ("use_dora", "target_parameters"):
                if getattr(self, name):
                    problems.append((name, "does not go together with alora_invocation_tokens; leave it out"))
        for name, kind in START_CONFIGS.items():
            found = kind.problems(getattr(self, name) or None)
            problems += [(f"{name}.{part}" if part else name, message) for part, message in found]
        return problems

    def __post_init__(self) -> None:
        # The first key that fits counts, and files are sorted: sorted here too, an adapter loads as it was made.
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if value is None or isinstance(value, Mapping):
                setattr(self, name, dict(sorted((value or {}).items(), key=lambda item: str(item[0]))))
        super().__post_init__()
        parameters: Any = self.target_parameters
        if isinstance(parameters, set | frozenset | tuple):
            self.target_parameters = sorted(parameters)
        for name, kind in START_CONFIGS.items():
            setattr(self, name, self._start_config(name, kind))
        # PEFT keeps this one as a dictionary, which is empty where it is not used.
        rounding: Any = self.loftq_config if self.init_lora_weights == "loftq" else None
        self.loftq_config = asdict(rounding) if rounding else {}

    def _start_config(self, name: str, kind: type[StartConfig]) -> StartConfig | None:
        """The settings made of what was given; the defaults where the initialisation needs some."""
        value: Any = getattr(self, name) or None
        used = self.init_lora_weights == name.removesuffix("_config")
        if value is not None and not used:
            warnings.warn(
                f"{name} does nothing without init_lora_weights: {name.removesuffix('_config')}", stacklevel=4
            )
        if isinstance(value, kind) or (value is None and not used):
            return value
        return kind(**(value or {}))
