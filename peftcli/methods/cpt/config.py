"""What a prompt of CPT is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Blau et al., "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods", 2024,
arXiv:2410.17222.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType, TaskType
from peftcli.adapters.prompt_config import PromptLearningConfig


def whole_numbers(value: Any) -> str:
    """A list of whole numbers from 0 up that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        return f"must be a list of whole numbers, not {checks.shown(value)}"
    wrong = [item for item in value if isinstance(item, bool) or not isinstance(item, int) or item < 0]
    return f"must hold whole numbers from 0 up, not {checks.shown(wrong[0])}" if wrong else ""


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else 0


def _not_negative(value: Any) -> str:
    return "" if value == 0 and not isinstance(value, bool) else checks.positive(value)


@dataclass
class CPTConfig(PromptLearningConfig):
    """One prompt: the tokens of some examples, whose embeddings are moved by no more than an epsilon.

    `cpt_tokens_type_mask` says what each token is: of example number k (from 0), 4k+1 is the input's template, 4k+2 the
    input, 4k+3 the output's template and 4k+4 the label. Labels are not moved, and are trained on.
    """

    cpt_token_ids: list[int] | None = field(
        default=None, metadata={"help": "the tokens of the examples; default: token 0"}
    )
    cpt_mask: list[int] | None = field(
        default=None, metadata={"help": "kept for PEFT's files; it acts on nothing there, either"}
    )
    cpt_tokens_type_mask: list[int] | None = field(
        default=None, metadata={"help": "what each token is (see the class); default: the input's template"}
    )
    opt_weighted_loss_type: str | None = field(
        default="none", metadata={"help": "none, or decay: labels count less the further back they are"}
    )
    opt_loss_decay_factor: float | None = field(
        default=1.0, metadata={"help": "by which factor, from one label to the one before it"}
    )
    opt_projection_epsilon: float | None = field(
        default=0.1, metadata={"help": "how far an input's token may move, for 2048 numbers"}
    )
    opt_projection_format_epsilon: float | None = field(
        default=0.1, metadata={"help": "how far a template's token may move, for 2048 numbers"}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "the tokenizer that the tokens are of; it is only written down"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.CPT
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PromptLearningConfig.CHECKS,
        # As many as there are tokens.
        "num_virtual_tokens": checks.optional(checks.rank),
        "cpt_token_ids": checks.optional(whole_numbers),
        "cpt_mask": checks.optional(whole_numbers),
        "cpt_tokens_type_mask": checks.optional(whole_numbers),
        "opt_weighted_loss_type": checks.one_of("none", "decay"),
        "opt_loss_decay_factor": checks.positive,
        "opt_projection_epsilon": _not_negative,
        "opt_projection_format_epsilon": _not_negative,
        "tokenizer_name_or_path": checks.text,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cpt_token_ids = [0] if self.cpt_token_ids is None else list(self.cpt_token_ids)
        count = len(self.cpt_token_ids)
        self.cpt_mask = [1] * count if self.cpt_mask is None else list(self.cpt_mask)
        if self.cpt_tokens_type_mask is None:
            self.cpt_tokens_type_mask = [1] * count
        self.cpt_tokens_type_mask = list(self.cpt_tokens_type_mask)
        self.num_virtual_tokens = count
        self.num_transformer_submodules = 1

    def conflicts(self) -> list[tuple[str, str]]:
        """Another task than continuing text, and lists that do not belong together."""
        problems = super().conflicts()
        if self.task_type not in (TaskType.CAUSAL_LM, None):
            problems.append(("task_type", f"must be CAUSAL_LM, not {self.task_type}"))
        count = _length(self.cpt_token_ids) or 1
        for name in ("cpt_mask", "cpt_tokens_type_mask"):
            value = getattr(self, name)
            if value is not None and _length(value) != count:
                problems.append((name, f"has {_length(value)} numbers, and there are {count} tokens"))
        if self.num_virtual_tokens not in (None, count):
            problems.append(
                ("num_virtual_tokens", f"is {self.num_virtual_tokens}, and there are {count} tokens")
            )
        return problems
