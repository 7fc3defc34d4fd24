"""What a VB-LoRA adapter is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", 2024, arXiv:2405.15179.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.targeted import LayeredConfig

_ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass
class VBLoRAConfig(LayeredConfig):
    """One VB-LoRA adapter: W x becomes W x + B A x; every piece of A and B is a trained mixture of a bank's vectors."""

    r: int = field(default=4, metadata={"help": "the rank: how many numbers lie between A and B"})
    num_vectors: int = field(
        default=256, metadata={"help": "how many vectors the bank has; more for larger models"}
    )
    vector_length: int = field(
        default=256,
        metadata={
            "help": "the vectors' length; it must divide the inputs and outputs of every adapted layer"
        },
    )
    topk: int = field(
        default=2,
        metadata={"help": "how many vectors are mixed in a piece; 2 is usual, more make files larger"},
    )
    save_only_topk_weights: bool = field(
        default=False,
        metadata={
            "help": "save only which vectors are mixed, and how: smaller files, to be used but not trained on"
        },
    )
    vblora_dropout: float = field(
        default=0.0, metadata={"help": "share of the inputs that training leaves out"}
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "the layers keep their weight as (in, out), as GPT-2's Conv1D does"},
    )
    bias: Literal["none", "all", "vblora_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all, or those of the adapted layers"}
    )
    init_vector_bank_bound: float = field(
        default=0.02, metadata={"help": "the bank starts with numbers between minus this and this"}
    )
    init_logits_std: float = field(
        default=0.1, metadata={"help": "the standard deviation that the mixtures' logits start with"}
    )

    METHOD: ClassVar[PeftType | None] = PeftType.VBLORA
    # PEFT's differences from LoRA's targets.
    DEFAULT_TARGETS: ClassVar[Mapping[str, list[str]]] = {
        "t5": ["q", "k", "v", "o", "wi", "wo"],
        "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        "bart": _ATTENTION_AND_MLP,
        "opt": _ATTENTION_AND_MLP,
        "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    }
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **LayeredConfig.CHECKS,
        "r": checks.rank,
        "num_vectors": checks.rank,
        "vector_length": checks.rank,
        "topk": checks.rank,
        "save_only_topk_weights": checks.boolean,
        "vblora_dropout": checks.probability,
        "fan_in_fan_out": checks.boolean,
        "bias": checks.one_of("none", "all", "vblora_only"),
        "init_vector_bank_bound": checks.positive,
        "init_logits_std": checks.positive,
    }

    def conflicts(self) -> list[tuple[str, str]]:
        """No more vectors can be chosen than there are."""
        problems = super().conflicts()
        chosen, known = self.topk, self.num_vectors
        if isinstance(chosen, int) and isinstance(known, int) and chosen > known:
            problems.append(("topk", f"is {chosen}, but the bank has num_vectors {known}"))
        return problems
