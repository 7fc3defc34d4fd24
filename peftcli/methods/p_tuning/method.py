"""P-tuning as the engine sees it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from peftcli.adapters.prompt_method import PromptMethod, PromptStart
from peftcli.errors import AdapterError
from peftcli.methods.p_tuning.config import (
    MLP_LAYERS,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
)
from peftcli.methods.p_tuning.encoder import PromptNetwork


class PTuningMethod(PromptMethod):
    """P-tuning."""

    prefix: ClassVar[str] = "p_tuning_"

    def complete(self, config: Any, model: nn.Module) -> None:
        """As for every prompt; and the network's width."""
        super().complete(config, model)
        if config.encoder_hidden_size is None:
            config.encoder_hidden_size = config.token_dim

    def encoder(self, config: PromptEncoderConfig, start: PromptStart) -> PromptNetwork:
        """Random vectors and a network behind them."""
        assert config.num_virtual_tokens
        assert config.num_transformer_submodules
        assert config.token_dim
        assert config.encoder_hidden_size
        encoder = PromptNetwork(
            config.num_virtual_tokens * config.num_transformer_submodules, config.token_dim
        )
        if start.initialise:
            _check(config)
            encoder.add_network(
                config.encoder_reparameterization_type,
                config.encoder_hidden_size,
                config.encoder_num_layers,
                config.encoder_dropout,
            )
        return encoder


def _check(config: PromptEncoderConfig) -> None:
    """Refuses settings of an LSTM that an MLP would ignore; a file may hold them, since its network is gone."""
    is_mlp = config.encoder_reparameterization_type == PromptEncoderReparameterizationType.MLP
    if is_mlp and config.encoder_num_layers != MLP_LAYERS:
        raise AdapterError("encoder_num_layers is for LSTM; an MLP has its own layers")
    if config.encoder_dropout and (is_mlp or config.encoder_num_layers == 1):
        raise AdapterError("encoder_dropout acts between the layers of an LSTM, and there is no such place")
