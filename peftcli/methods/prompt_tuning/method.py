"""Prompt tuning as the engine sees it."""

from __future__ import annotations

from typing import ClassVar

import torch

from peftcli.adapters.prompt_method import (
    PromptEncoder,
    PromptMethod,
    PromptStart,
    start_as_words,
    text_tokens,
)
from peftcli.methods.prompt_tuning.config import PromptTuningConfig, PromptTuningInit


class PromptTuningMethod(PromptMethod):
    """Prompt tuning."""

    prefix: ClassVar[str] = "prompt_tuning_"

    def encoder(self, config: PromptTuningConfig, start: PromptStart) -> PromptEncoder:
        """Random vectors, or the base's embeddings of tokens."""
        assert config.num_virtual_tokens
        assert config.num_transformer_submodules
        assert config.token_dim
        tokens = config.num_virtual_tokens * config.num_transformer_submodules
        encoder = PromptEncoder(tokens, config.token_dim)
        if start.initialise and config.prompt_tuning_init == PromptTuningInit.TEXT:
            start_as_words(encoder, start.words, torch.tensor(text_tokens(config, tokens)))
        elif start.initialise and config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
            start_as_words(encoder, start.words, torch.randint(start.words.num_embeddings, (tokens,)))
        return encoder
