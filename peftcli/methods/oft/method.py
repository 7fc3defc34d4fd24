"""OFT as the engine sees it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import bare, settle_fan_in_fan_out
from peftcli.adapters.rotation import RotationMethod, width
from peftcli.methods.oft.config import OFTConfig
from peftcli.methods.oft.layer import Conv2d, Embedding, Linear, OFTLayer, OFTRotation, blocks_of


class OFTMethod(RotationMethod):
    """OFT."""

    prefix = "oft_"
    layer = OFTLayer
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear, nn.Conv2d: Conv2d, nn.Embedding: Embedding}

    def problem(self, site: Site, config: OFTConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if message := super().problem(site, config, model):
            return message
        base = bare(site.module)
        if isinstance(base, nn.Embedding) and base.max_norm is not None:
            return f"{site.name} is an embedding with max_norm"
        if blocks_of(width(base), config)[1] == 1:
            what, value = _wanted(config)
            return (
                f"{site.name}: with {what} {value} its {width(base)} inputs are blocks of 1, which cannot rotate; "
                "choose another"
            )
        return ""

    def resolve(self, sites: Sequence[Site], config: OFTConfig, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Sets fan_in_fan_out; says where blocks are not as the config has them."""
        settle_fan_in_fan_out(sites, config)
        what, value = _wanted(config)
        odd = [(site.name, width(bare(site.module))) for site in sites if width(bare(site.module)) % value]
        if odd:
            name, inputs = odd[0]
            warnings.warn(
                f"{what} {value} does not divide the {inputs} inputs of {name}"
                f"{f' (and of {len(odd) - 1} more layers)' if len(odd) > 1 else ''}; the nearest that does is taken",
                stacklevel=2,
            )

    def after_step(self, tuner: Any, step: int, total_steps: int | None = None) -> None:  # noqa: ARG002
        """Constrained OFT is descent with a projection after each step."""
        for module in tuner.model.modules():
            if isinstance(module, OFTRotation) and module.weight.requires_grad:
                module.project()


def _wanted(config: OFTConfig) -> tuple[str, int]:
    return ("r", config.r) if config.r else ("oft_block_size", config.oft_block_size)
