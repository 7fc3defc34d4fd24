"""What a prompt of P-tuning is made of: the fields of its adapter_config.json, with PEFT's names and defaults.

Liu et al., "GPT Understands, Too", 2021, arXiv:2103.10385.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from peftcli.adapters import checks
from peftcli.adapters.config import PeftType
from peftcli.adapters.prompt_config import PromptLearningConfig


class PromptEncoderReparameterizationType(StrEnum):
    """The network that makes the prompt."""

    MLP = "MLP"
    LSTM = "LSTM"


# An MLP has its number of layers built in.
MLP_LAYERS = 2


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """One prompt before the embeddings of the input, which a network makes while it is trained."""

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = field(
        default=PromptEncoderReparameterizationType.MLP, metadata={"help": "the network: MLP or LSTM"}
    )
    encoder_hidden_size: int | None = field(
        default=None, metadata={"help": "width of the network; default: token_dim"}
    )
    encoder_num_layers: int = field(
        default=MLP_LAYERS, metadata={"help": "layers of an LSTM; an MLP has its own"}
    )
    encoder_dropout: float = field(default=0.0, metadata={"help": "dropout between the layers of an LSTM"})

    METHOD: ClassVar[PeftType | None] = PeftType.P_TUNING
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        **PromptLearningConfig.CHECKS,
        "encoder_reparameterization_type": checks.one_of(*PromptEncoderReparameterizationType),
        "encoder_hidden_size": checks.optional(checks.rank),
        "encoder_num_layers": checks.rank,
        "encoder_dropout": checks.probability,
    }
