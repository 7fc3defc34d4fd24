"""VeRA as the engine sees it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.projected import ProjectedMethod
from peftcli.methods.vera.config import VeraConfig
from peftcli.methods.vera.layer import Linear


class VeraMethod(ProjectedMethod):
    """VeRA."""

    prefix = "vera_lambda_"
    layer = Linear
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear}
    shared: ClassVar = {"vera_A": BufferDict, "vera_B": BufferDict}

    def draw(
        self, inputs: int, outputs: int, config: VeraConfig, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, inputs) and B (outputs, r), uniform."""
        A_RI, B_OR = torch.empty(config.r, inputs), torch.empty(outputs, config.r)
        for projection in (A_RI, B_OR):
            nn.init.kaiming_uniform_(projection, generator=generator)
        return A_RI, B_OR
