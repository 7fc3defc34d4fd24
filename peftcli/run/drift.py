"""How far two models are apart on the same inputs, in float32.

What is computed with does not count here, only what is written: rounded activations would hide what merging does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftcli.errors import ModelError
from peftcli.run.answers import DriftAnswer

if TYPE_CHECKING:
    from torch import Tensor

# The largest difference that rounding a model's weights once may make, by their type, as a share of the largest output.
# On random inputs to models of 6 and 30 layers it is up to 7e-6, 2e-3 and 1.5e-2.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
ROWS, LENGTH = 3, 24

Inputs = dict[str, "Tensor"]
Outputs = dict[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class Drift:
    """What merging did to a model's outputs.

    Attributes:
        output: the one that drifted most: `logits`, mostly.
        largest: difference between the adapted model's and the merged one's; NaN where either has no number.
        tolerance: that it may have.
        effect: the largest difference that the adapter makes to its base's.
        is_lost: the merged model's are, on the whole, no nearer to the adapter's than to its base's. The tolerance of a
            narrow type does not see that of a small adapter.
        dtype: of the merged weights.
    """

    output: str
    largest: float
    tolerance: float
    effect: float
    is_lost: bool
    dtype: str

    @property
    def is_small(self) -> bool:
        """Whether the two models are one."""
        return self.largest <= self.tolerance and not self.is_lost

    def line(self) -> str:
        """For a person."""
        return (
            f"{self.output} differ by at most {self.largest:.2g} (tolerance {self.tolerance:.2g} for {self.dtype}); "
            f"the adapter moves its base's by up to {self.effect:.2g}"
        )

    def as_dict(self) -> DriftAnswer:
        """For `--json`."""
        return {
            "output": self.output,
            "largest_difference": self.largest,
            "tolerance": self.tolerance,
            "adapter_effect": self.effect,
            "adapter_lost": self.is_lost,
            "dtype": self.dtype,
        }


def drift(
    base: Sequence[Outputs], adapted: Sequence[Outputs], merged: Sequence[Outputs], dtype: str
) -> Drift:
    """What became of the adapted model's outputs: of several, the one that comes nearest to its tolerance."""
    found = [
        Drift(
            name,
            _largest(name, adapted, merged),
            TOLERANCES[dtype] * max(_size(outputs[name]) for outputs in adapted),
            _largest(name, adapted, base),
            _is_lost([[outputs[name] for outputs in side] for side in (base, adapted, merged)]),
            dtype,
        )
        for name in adapted[0]
    ]
    return max(found, key=lambda each: (not each.is_small, each.largest / (each.tolerance or 1.0)))


def _largest(name: str, one: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    pairs = [(mine[name], theirs[name]) for mine, theirs in zip(one, other, strict=True)]
    # Outputs that are masked are infinite in both.
    differences = [torch.where(mine == theirs, 0.0, (mine - theirs).abs()).max() for mine, theirs in pairs]
    return float(torch.stack(differences).max())


def _is_lost(sides: Sequence[Sequence[Tensor]]) -> bool:
    base, adapted, merged = (torch.cat([tensor.flatten() for tensor in side]) for side in sides)
    changes = bool((base != adapted).any())
    return changes and not bool((merged - adapted).norm() < (merged - base).norm())


def _size(tensor: Tensor) -> float:
    return float(tensor.where(tensor.isfinite(), 0.0).abs().max())


@torch.inference_mode()
def outputs(model: Any, inputs: Sequence[Inputs]) -> list[Outputs]:
    """Everything that a model says of each input, in float32."""
    results = []
    for each in inputs:
        said = model(**each)
        results.append(
            {
                name: value.float()
                for name, value in said.items()
                if isinstance(value, torch.Tensor) and value.is_floating_point()
            }
        )
    return results


def sample_inputs(model: Any) -> list[Inputs]:
    """A few inputs of the kind that the model takes: random ones, the same at every call.

    Raises:
        ModelError: it takes none of the usual kinds.
    """
    kinds: dict[str, Callable[[Any, torch.Generator], Inputs]] = {
        "input_ids": _tokens,
        "pixel_values": _image,
        "input_features": _spectrum,
        "input_values": _sound,
    }
    make = kinds.get(model.main_input_name)
    if make is None:
        raise ModelError(
            f"a {type(model).__name__} takes {model.main_input_name}, for which --verify has no inputs; leave it out"
        )
    generator = torch.Generator().manual_seed(0)
    inputs = [make(model.config, generator) for _ in range(ROWS)]
    if model.config.is_encoder_decoder:
        for each in inputs:
            each["decoder_input_ids"] = _tokens(model.config, generator)["input_ids"]
    return inputs


def _tokens(config: Any, generator: torch.Generator) -> Inputs:
    text = config.get_text_config()
    # Some models count positions from the padding token's number on.
    most = getattr(text, "max_position_embeddings", None) or LENGTH
    return {
        "input_ids": torch.randint(text.vocab_size, (1, max(1, min(LENGTH, most - 2))), generator=generator)
    }


def _image(config: Any, generator: torch.Generator) -> Inputs:
    # Of models of texts and pictures, the pictures' config says it.
    parts = [getattr(config, name, None) for name in ("vision_config", "backbone_config")]
    seen = [each for each in (config, *parts) if each is not None]
    size = next((each.image_size for each in seen if getattr(each, "image_size", None)), 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = next((each.num_channels for each in seen if getattr(each, "num_channels", None)), 3)
    return {"pixel_values": torch.randn(1, channels, height, width, generator=generator)}


def _spectrum(config: Any, generator: torch.Generator) -> Inputs:
    frames = 2 * config.max_source_positions
    return {"input_features": torch.randn(1, config.num_mel_bins, frames, generator=generator)}


def _sound(config: Any, generator: torch.Generator) -> Inputs:  # noqa: ARG001  (a second of it, for any model)
    return {"input_values": torch.randn(1, 16_000, generator=generator)}
