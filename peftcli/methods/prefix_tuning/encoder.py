"""The network of prefix tuning: vectors in, the keys and values of all layers out.

Shapes: N virtual tokens, D numbers of a layer's keys, L layers, H the network's width.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, arXiv:2101.00190.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from peftcli.adapters.prompt_method import NetworkPromptEncoder


class PrefixEncoder(NetworkPromptEncoder):
    """`embedding` (N, L·2·D); or (N, D), and a network of two layers that makes the keys and values of it."""

    networks: ClassVar[tuple[str, ...]] = ("transform",)

    def __init__(self, tokens: int, width: int, layers: int, hidden: int | None = None) -> None:
        """Without `hidden`, the width of the network, there is none."""
        super().__init__(tokens, width if hidden else layers * 2 * width)
        if hidden:
            self.transform = nn.Sequential(
                nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, layers * 2 * width)
            )

    def start_at_zero(self) -> None:
        """Lets the keys and values be zero: attention to the prefix is even, and adds nothing."""
        last = self.embedding if self.is_direct else self.transform[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """(…, N, L·2·D)."""
        vectors: torch.Tensor = self.embedding(indices)
        return vectors if self.is_direct else self.transform(vectors)
