"""HRA as the engine sees it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import bare
from peftcli.adapters.rotation import RotationMethod, width
from peftcli.methods.hra.config import HRAConfig
from peftcli.methods.hra.layer import Conv2d, HRALayer, Linear, starts_in_pairs


class HRAMethod(RotationMethod):
    """HRA."""

    prefix = "hra_"
    layer = HRALayer
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear, nn.Conv2d: Conv2d}

    def problem(self, site: Site, config: HRAConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if message := super().problem(site, config, model):
            return message
        inputs = width(bare(site.module))
        if config.apply_GS and config.r > inputs:
            return (
                f"{site.name} has {inputs} inputs; {config.r} directions cannot be orthogonal there: lower r"
            )
        return ""

    def resolve(self, sites: Sequence[Site], config: HRAConfig, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Says where a new adapter cannot start as one that does nothing."""
        if config.init_weights and not config.inference_mode and not starts_in_pairs(config):
            reason = (
                "orthogonal reflections" if config.apply_GS else f"{config.r} reflections, an odd number,"
            )
            warnings.warn(f"{reason} cannot start in pairs: the new adapter changes the model", stacklevel=2)
