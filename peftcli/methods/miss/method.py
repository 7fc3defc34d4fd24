"""MiSS as the engine sees it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.additive import features
from peftcli.adapters.base import Site
from peftcli.adapters.method import LayerMethod, bare
from peftcli.methods.miss.config import MissConfig
from peftcli.methods.miss.layer import MissLayer


class MissMethod(LayerMethod):
    """MiSS."""

    prefix = "miss_"
    layer = MissLayer
    kinds: ClassVar = {nn.Linear: MissLayer, Conv1D: MissLayer}

    def problem(self, site: Site, config: MissConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if message := super().problem(site, config, model):
            return message
        inputs, outputs = features(bare(site.module))
        has = f"{site.name} has {inputs} inputs and {outputs} outputs"
        if config.r > inputs:
            return f"{has}; r {config.r} is more than its inputs: lower it"
        if config.init_weights == "bat" and (inputs % config.r or outputs % config.r):
            return f"{has}; with init_weights bat r must divide both, which {config.r} does not"
        if config.init_weights == "mini" and outputs % config.mini_r:
            return f"{has}; mini_r must divide its outputs, which {config.mini_r} does not"
        return ""

    def resolve(self, sites: Sequence[Site], config: MissConfig, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Says where `mini_r` is given for nothing."""
        if config.mini_r != 1 and config.init_weights != "mini":
            warnings.warn(
                f"mini_r {config.mini_r} has no effect without init_weights: mini",
                stacklevel=2,
            )
