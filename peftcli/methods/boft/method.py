"""BOFT as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import bare, settle_fan_in_fan_out
from peftcli.adapters.rotation import RotationMethod, width
from peftcli.methods.boft.config import BOFTConfig
from peftcli.methods.boft.layer import BOFTLayer, Conv2d, Linear, blocks_of


class BOFTMethod(RotationMethod):
    """BOFT."""

    prefix = "boft_"
    layer = BOFTLayer
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear, nn.Conv2d: Conv2d}

    def problem(self, site: Site, config: BOFTConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if message := super().problem(site, config, model):
            return message
        inputs = width(bare(site.module))
        blocks, size = blocks_of(inputs, config)
        set_by = "boft_block_num" if config.boft_block_num else "boft_block_size"
        if blocks * size != inputs:
            return (
                f"{site.name} has {inputs} inputs, which {set_by} {getattr(config, set_by)} does not divide"
            )
        if size == 1:
            return f"{site.name}: with {set_by} {getattr(config, set_by)} its blocks are single inputs; choose another"
        factors = config.boft_n_butterfly_factor
        if factors > 1 and (size % 2 or blocks % 2 ** (factors - 1)):
            return (
                f"{site.name} has {blocks} blocks of {size}; boft_n_butterfly_factor {factors} needs a number of "
                f"blocks that {2 ** (factors - 1)} divides, of an even size"
            )
        return ""

    def resolve(self, sites: Sequence[Site], config: BOFTConfig, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Sets fan_in_fan_out."""
        settle_fan_in_fan_out(sites, config)
