"""RandLoRA as the engine sees it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.projected import ProjectedMethod
from peftcli.errors import AdapterError
from peftcli.methods.randlora.config import RandLoraConfig
from peftcli.methods.randlora.layer import Linear, bases_of


class RandLoraMethod(ProjectedMethod):
    """RandLoRA."""

    prefix = "randlora_"
    layer = Linear
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear}
    shared: ClassVar = {"randlora_A": BufferDict, "randlora_B": BufferDict}

    def draw(
        self, inputs: int, outputs: int, config: RandLoraConfig, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, 1, smaller) and B (larger, bases, r), each of standard deviation one: uniform, or of three values."""
        smaller, larger = sorted((inputs, outputs))
        bases = bases_of(smaller, config.r)
        if not config.sparse and not config.very_sparse:
            A = _uniform(config.r, smaller, generator)
            B = torch.cat([_uniform(larger, config.r, generator) for _ in range(bases)], 1)
        else:
            sparsity = math.sqrt(smaller) if config.very_sparse else 3.0
            A = _ternary((config.r, 1, smaller), sparsity, generator)
            B = _ternary((larger, bases, config.r), sparsity, generator)
        return A / A.std(), B / B.std()

    def unpacked(
        self,
        state: dict[str, torch.Tensor],
        config: RandLoraConfig,  # noqa: ARG002
        prefix: str,
    ) -> dict[str, torch.Tensor]:
        """Without the projections' copies under every layer's name, which PEFT saves beside them."""
        copies = tuple(f".{name}" for name in self.shared)
        return {
            key: tensor
            for key, tensor in state.items()
            if not (key.startswith(prefix) and key.endswith(copies))
        }


def _uniform(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix (rows, 1, columns), drawn in bfloat16 as PEFT does where it can."""
    matrix = torch.empty(rows, 1, columns, dtype=torch.bfloat16)
    return nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)


def _ternary(shape: tuple[int, int, int], sparsity: float, generator: torch.Generator) -> torch.Tensor:
    """Minus one, zero and one; one in `sparsity` entries is not zero.

    Achlioptas, "Database-friendly random projections", 2003, doi:10.1016/S0022-0000(03)00025-4.
    """
    drawn = torch.rand(shape, generator=generator)
    share = 1 / (2 * sparsity)
    values = (drawn > 1 - share).float() - (drawn < share).float()
    if not values.std() > 0:
        raise AdapterError(
            "such small layers leave nothing of sparse bases; set sparse and very_sparse to false"
        )
    return values
