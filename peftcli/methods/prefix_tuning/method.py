"""Prefix tuning as the engine sees it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from peftcli.adapters.config import TaskType
from peftcli.adapters.prompt_method import PromptMethod, PromptStart, fill, text_config
from peftcli.errors import AdapterError
from peftcli.methods.prefix_tuning.config import PrefixTuningConfig
from peftcli.methods.prefix_tuning.encoder import PrefixEncoder


class PrefixTuningMethod(PromptMethod):
    """Prefix tuning."""

    prefix: ClassVar[str] = "prefix_tuning_"
    keys_and_values: ClassVar[bool] = True

    def complete(self, config: Any, model: nn.Module) -> None:
        """The layers whose attention gets a prefix, and the shape of their keys.

        Raises:
            AdapterError: where keys and values are not of one shape.
        """
        if config.num_transformer_submodules is None:
            config.num_transformer_submodules = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM else 1
        shape = text_config(model)
        if getattr(shape, "kv_lora_rank", None):
            raise AdapterError(
                f"{type(model).__name__} caches keys and values of different sizes; a prefix has one size"
            )
        if config.num_layers is None and isinstance(getattr(shape, "num_decoder_layers", None), int):
            config.num_layers = shape.num_decoder_layers
        fill(config, "num_layers", shape, "num_hidden_layers")
        heads, size = max((key_shape(layer) for layer in shape.per_layer_config), key=lambda found: found[1])
        if config.num_attention_heads is None:
            config.num_attention_heads = heads
        if config.token_dim is None:
            config.token_dim = config.num_attention_heads * size
        if config.encoder_hidden_size is None:
            config.encoder_hidden_size = config.token_dim

    def encoder(self, config: PrefixTuningConfig, start: PromptStart) -> PrefixEncoder:
        """A random prefix, or one of zeros."""
        assert config.num_virtual_tokens
        assert config.token_dim
        assert config.num_layers
        has_network = config.prefix_projection and start.initialise
        hidden = config.encoder_hidden_size if has_network else None
        encoder = PrefixEncoder(config.num_virtual_tokens, config.token_dim, config.num_layers, hidden)
        if config.init_weights == "zero":
            encoder.start_at_zero()
        return encoder


def key_shape(layer: Any) -> tuple[int, int]:
    """The heads of a layer's cached keys, and the numbers of each."""
    heads = layer.num_attention_heads
    size = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    if getattr(layer, "multi_query", False) and not getattr(layer, "new_decoder_architecture", False):
        return 1, size  # Falcon and StarCoder: one head of keys for all heads of queries
    return getattr(layer, "num_key_value_heads", None) or heads, size
