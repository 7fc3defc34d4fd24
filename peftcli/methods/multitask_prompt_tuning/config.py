"""What a prompt for several tasks is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", 2023, arXiv:2303.02861.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.prompt_config import WordedPromptConfig


class MultitaskPromptTuningInit(StrEnum):
    """What a new prompt is."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


# These take a task's own part from the source: there is one task then.
ONE_TASK = (MultitaskPromptTuningInit.AVERAGE_SOURCE_TASKS, MultitaskPromptTuningInit.EXACT_SOURCE_TASK)
FROM_SOURCE = (*ONE_TASK, MultitaskPromptTuningInit.ONLY_SOURCE_SHARED)


@dataclass
class MultitaskPromptTuningConfig(WordedPromptConfig):
    """One prompt that all tasks share, and factors of small rank by which each task scales it."""

    prompt_tuning_init: MultitaskPromptTuningInit | str = field(
        default=MultitaskPromptTuningInit.RANDOM,
        metadata={
            "help": "a new prompt: RANDOM; TEXT (prompt_tuning_init_text); or from a trained one: "
            "AVERAGE_SOURCE_TASKS, EXACT_SOURCE_TASK, ONLY_SOURCE_SHARED"
        },
    )
    prompt_tuning_init_state_dict_path: str | None = field(
        default=None, metadata={"help": "the adapter_model.safetensors of the prompt to start from"}
    )
    prompt_tuning_init_task: int | None = field(
        default=0, metadata={"help": "which of its tasks to start from, with EXACT_SOURCE_TASK"}
    )
    num_ranks: int | None = field(default=1, metadata={"help": "rank of a task's factors"})
    num_tasks: int | None = field(default=1, metadata={"help": "how many tasks there are"})

    METHOD: ClassVar[PeftType | None] = PeftType.MULTITASK_PROMPT_TUNING
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **WordedPromptConfig.CHECKS,
        "prompt_tuning_init": checks.one_of(*MultitaskPromptTuningInit),
        "prompt_tuning_init_state_dict_path": checks.text,
        "prompt_tuning_init_task": checks.count,
        "num_ranks": checks.rank,
        "num_tasks": checks.rank,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """A source that is missing, and more tasks than it gives."""
        problems = super().conflicts()
        init: Any = self.prompt_tuning_init
        if init in FROM_SOURCE and not self.prompt_tuning_init_state_dict_path:
            problems.append(
                ("prompt_tuning_init_state_dict_path", f"is missing; {init} starts from a trained prompt")
            )
        if init in ONE_TASK and self.num_tasks != 1:
            problems.append(("num_tasks", f"must be 1: {init} gives one task's factors"))
        return problems
