"""Methods whose layers share two random projections, of which each layer uses as much as it has inputs and outputs.

They are drawn from a key, so a file may leave them out (`save_projection: false`). Every adapter has its own, drawn
for its own layers: its file means the same in a model with other adapters and without them. (In PEFT a second adapter
uses the first one's, which may be larger, and is another one when it is loaded alone.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from peftcli.adapters.additive import features
from peftcli.adapters.base import SavedTensor, Site
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.method import AddOptions, LayerMethod, bare, settle_fan_in_fan_out
from peftcli.adapters.weights import adapter_dtype, weight_of


class ProjectedMethod(LayerMethod):
    """Such a method; `shared` names the two projections in the order in which they are drawn."""

    shared: ClassVar[Mapping[str, type[BufferDict]]]

    @abstractmethod
    def draw(
        self, inputs: int, outputs: int, config: Any, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both projections, for layers that have so many inputs and outputs at most."""

    def resolve(self, sites: Sequence[Site], config: Any, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Sets fan_in_fan_out to what the layers are."""
        settle_fan_in_fan_out(sites, config)

    def share(
        self, tuner: Any, sites: Sequence[Site], adapter_name: str, config: Any, options: AddOptions
    ) -> None:
        """Draws the projections."""
        bases = [bare(site.module) for site in sites]
        inputs, outputs = (max(sizes) for sizes in zip(*map(features, bases), strict=True))
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        drawn = self.draw(inputs, outputs, config, generator)
        for container, projection in zip(self.shared, drawn, strict=True):
            getattr(tuner, container).register_buffer(
                adapter_name,
                _as_weights(projection, bases[0], autocast=options.autocast_adapter_dtype),
                persistent=config.save_projection,
            )

    def shared_tensors(self, tuner: Any, adapter_name: str, config: Any) -> Iterator[SavedTensor]:
        """The projections, where the file holds them."""
        if config.save_projection:
            yield from super().shared_tensors(tuner, adapter_name, config)


def _as_weights(projection: torch.Tensor, base: nn.Module, *, autocast: bool) -> torch.Tensor:
    """A projection as an adapter's weights on this layer are; it was rounded to the base's dtype first, as by PEFT."""
    weight = weight_of(base)
    rounded = projection.to(weight.dtype) if weight.is_floating_point() else projection
    return rounded.to(weight.device, adapter_dtype(base, autocast=autocast))
