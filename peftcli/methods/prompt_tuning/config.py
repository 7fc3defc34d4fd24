"""What a prompt of prompt tuning is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021, arXiv:2104.08691.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.prompt_config import WordedPromptConfig


class PromptTuningInit(StrEnum):
    """What a new prompt is."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass
class PromptTuningConfig(WordedPromptConfig):
    """One prompt: vectors that stand before the embeddings of the input."""

    prompt_tuning_init: PromptTuningInit | str = field(
        default=PromptTuningInit.RANDOM,
        metadata={
            "help": "a new prompt: RANDOM numbers, SAMPLE_VOCAB (embeddings of random tokens), or TEXT "
            "(those of prompt_tuning_init_text)"
        },
    )

    METHOD: ClassVar[PeftType | None] = PeftType.PROMPT_TUNING
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **WordedPromptConfig.CHECKS,
        "prompt_tuning_init": checks.one_of(*PromptTuningInit),
    }
