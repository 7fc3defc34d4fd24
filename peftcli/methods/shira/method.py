"""SHiRA as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import LayerMethod, bare, settle_fan_in_fan_out
from peftcli.methods.shira.config import ShiraConfig
from peftcli.methods.shira.layer import ShiraLayer, sizes


class ShiraMethod(LayerMethod):
    """SHiRA."""

    prefix = "shira_"
    layer = ShiraLayer
    kinds: ClassVar = {nn.Linear: ShiraLayer, Conv1D: ShiraLayer}

    def problem(self, site: Site, config: ShiraConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if message := super().problem(site, config, model):
            return message
        inputs, outputs = sizes(bare(site.module))
        most = inputs * outputs // (inputs + outputs)
        if config.r > most:
            return f"{site.name} is ({outputs}, {inputs}), which r {config.r} is more than; it can be {most} at most"
        return ""

    def resolve(
        self,
        sites: Sequence[Site],
        config: ShiraConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,  # noqa: ARG002
    ) -> None:
        """Sets fan_in_fan_out."""
        settle_fan_in_fan_out(sites, config)
