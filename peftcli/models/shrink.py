"""A config made small: the same architecture in little, for what must only be tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What configs call the number of their layers, and lists with an entry a layer.
_LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"
)  # fmt: skip
_BY_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")


def shrink(config: Any) -> None:
    """Changes a config, and those inside it, to two narrow layers."""
    for part in _parts(config):
        _narrow(part)


def _parts(config: Any) -> Iterator[Any]:
    """The config and those inside it (of a vision tower, a decoder)."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)


def _is_taken_apart(config: Any) -> bool:
    """Whether a head reads what several layers say, by their numbers: they must all stay."""
    taken = [getattr(config, name, None) for name in ("out_indices", "backbone_out_indices")]
    return any(isinstance(numbers, list | tuple) and len(numbers) > 1 for numbers in taken)


def _forget_layers(config: Any) -> None:
    """The names of layers that are no more; what is read of a backbone is then its last layer again."""
    if isinstance(names := getattr(config, "stage_names", None), list):
        config.stage_names = names[: 1 + config.num_hidden_layers]
        config.set_output_features_output_indices(out_features=None, out_indices=None)


def _narrow(config: Any) -> None:
    """Two layers (or two a stage); narrow ones, where width follows from the number of heads as in most decoders."""
    if isinstance(depths := getattr(config, "depths", None), list | tuple):
        # Its stages are what other configs call layers.
        config.depths = [min(2, depth) for depth in depths]
    elif not _is_taken_apart(config):
        for name in _LAYERS:
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, min(2, getattr(config, name)))
        _forget_layers(config)
    for name in _BY_LAYER:
        if isinstance(kinds := getattr(config, name, None), list):
            setattr(config, name, kinds[:2])
    widths = ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")
    numbers: list[Any] = [getattr(config, name, None) for name in widths]
    heads, keys, hidden, inner = numbers
    if all(isinstance(number, int) for number in numbers) and hidden % heads == 0 and heads % keys == 0:
        group = heads // keys
        config.hidden_size = group * (hidden // heads)
        config.num_attention_heads, config.num_key_value_heads = group, 1
        config.intermediate_size = max(8, inner * config.hidden_size // hidden)
    experts = next((name for name in ("num_experts", "num_local_experts") if hasattr(config, name)), None)
    if experts and isinstance(getattr(config, experts), int):
        setattr(config, experts, min(4, getattr(config, experts)))
        config.num_experts_per_tok = min(2, getattr(config, "num_experts_per_tok", 2))
