"""The part of adapter_config.json that the prompt methods share: trained vectors before a model's inputs.

They adapt no layer. The shapes they need are those of the base model, and are filled in when a prompt meets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftConfig


@dataclass
class PromptLearningConfig(PeftConfig):
    """A prompt of trained vectors, and modules that are trained whole beside it."""

    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "how many virtual tokens the prompt has"}
    )
    token_dim: int | None = field(
        default=None, metadata={"help": "numbers of a virtual token; default: as the base's"}
    )
    num_transformer_submodules: int | None = field(
        default=None,
        metadata={"help": "1, or 2 for an encoder and a decoder; default: 2 for SEQ_2_SEQ_LM"},
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "attention heads of the base; default: by its config"}
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "layers of the base; default: by its config"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save whole, such as a new head"}
    )

    is_prompt_learning: ClassVar[bool] = True
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PeftConfig.CHECKS,
        "num_virtual_tokens": checks.rank,
        "token_dim": checks.optional(checks.rank),
        "num_transformer_submodules": lambda value: "" if value in (None, 1, 2) else "must be 1 or 2",
        "num_attention_heads": checks.optional(checks.rank),
        "num_layers": checks.optional(checks.rank),
        "modules_to_save": checks.optional(checks.names),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.modules_to_save
        if isinstance(given, set | frozenset | tuple):
            self.modules_to_save = sorted(given)


def _tokenizer_problem(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        return f"must be a mapping, not {checks.shown(value)}"
    # A config comes with an adapter from anywhere: it must not decide that code is run.
    return "must not hold trust_remote_code" if "trust_remote_code" in value else ""


@dataclass
class WordedPromptConfig(PromptLearningConfig):
    """A prompt that may start as the base's own embeddings of a text."""

    prompt_tuning_init_text: str | None = field(
        default=None, metadata={"help": "the text that the prompt starts as, with prompt_tuning_init: TEXT"}
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "the tokenizer for prompt_tuning_init_text; default: the base model's"},
    )
    tokenizer_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "arguments for AutoTokenizer.from_pretrained"}
    )
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PromptLearningConfig.CHECKS,
        "prompt_tuning_init_text": checks.text,
        "tokenizer_name_or_path": checks.text,
        "tokenizer_kwargs": _tokenizer_problem,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """A text that is missing, and what would be ignored without one."""
        problems = super().conflicts()
        is_text = getattr(self, "prompt_tuning_init", None) == "TEXT"
        if is_text and not self.prompt_tuning_init_text:
            problems.append(
                ("prompt_tuning_init_text", "is missing; prompt_tuning_init: TEXT starts from it")
            )
        if self.tokenizer_kwargs and not is_text:
            problems.append(("tokenizer_kwargs", "does nothing without prompt_tuning_init: TEXT"))
        return problems
