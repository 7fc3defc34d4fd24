"""What a LLaMA-adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention", 2023,
arXiv:2303.16199.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftConfig, PeftType

# The attention of the architectures that PEFT knows, by the base's model_type.
ATTENTION = {"llama": "self_attn", "mistral": "self_attn", "gpt2": "attn"}


@dataclass
class AdaptionPromptConfig(PeftConfig):
    """One LLaMA-adapter: a trained prompt beside the attention of each of the upper layers."""

    target_modules: str | None = field(
        default=None, metadata={"help": "the attention's name in a layer; default: by architecture"}
    )
    adapter_len: int | None = field(default=None, metadata={"help": "virtual tokens of a layer"})
    adapter_layers: int | None = field(
        default=None, metadata={"help": "how many layers get a prompt, counted from the top"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.ADAPTION_PROMPT
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PeftConfig.CHECKS,
        "target_modules": checks.text,
        "adapter_len": checks.rank,
        "adapter_layers": checks.rank,
    }

    @property
    def never_merges(self) -> str:
        """It acts on what attention gives."""
        return "stands beside attention"
