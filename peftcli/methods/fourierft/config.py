"""What a FourierFT adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", 2024, arXiv:2405.03003.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig


@dataclass
class FourierFTConfig(LayeredConfig):
    """One FourierFT adapter: W x becomes W x + scaling · D x; D has a spectrum of which a few entries are trained."""

    n_frequency: int = field(
        default=1000,
        metadata={
            "help": "how many entries of a layer's spectrum are trained; as many numbers has LoRA of rank "
            "n / (inputs + outputs)"
        },
    )
    scaling: float = field(
        default=150.0, metadata={"help": "the update is multiplied by this; 100 to 300 are usual"}
    )
    random_loc_seed: int = field(
        default=777, metadata={"help": "the seed from which the trained entries are chosen"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "fourier_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    n_frequency_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "another n_frequency for some layers: names or regular expressions to numbers"},
    )
    init_weights: bool = field(
        default=False, metadata={"help": "start at zero, where the adapter does nothing; false: at random"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.FOURIERFT
    # PEFT's differences from LoRA's targets.
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = {
        "gpt2": ["mlp.c_proj"],
        "gpt_bigcode": ["mlp.c_proj"],
    }
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "n_frequency": checks.size,
        "scaling": checks.positive,
        "random_loc_seed": checks.seed,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "fourier_only"),
        "n_frequency_pattern": checks.optional(checks.pattern_of(checks.size)),
        "init_weights": checks.boolean,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.n_frequency_pattern = self.n_frequency_pattern or {}
