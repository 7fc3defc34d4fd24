"""The network of P-tuning: vectors in, the prompt out.

Shapes: N virtual tokens, E numbers of one, H the network's width.

Liu et al., "GPT Understands, Too", 2021, arXiv:2103.10385.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from peftcli.adapters.prompt_method import NetworkPromptEncoder
from peftcli.methods.p_tuning.config import PromptEncoderReparameterizationType


class PromptNetwork(NetworkPromptEncoder):
    """`embedding` (N, E), then an MLP of three layers, or an LSTM in both directions and an MLP of two."""

    networks: ClassVar[tuple[str, ...]] = ("lstm_head", "mlp_head")

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__(tokens, width)
        self.width = width

    def add_network(self, kind: str, hidden: int, layers: int, dropout: float) -> None:
        """Puts the network behind the vectors; without one they are the prompt."""
        if kind == PromptEncoderReparameterizationType.LSTM:
            self.lstm_head = nn.LSTM(
                self.width, hidden, layers, dropout=dropout, bidirectional=True, batch_first=True
            )
            self.mlp_head = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, self.width)
            )
        else:
            self.mlp_head = nn.Sequential(
                nn.Linear(self.width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, self.width),
            )

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """(…, N, E)."""
        vectors: torch.Tensor = self.embedding(indices)
        if hasattr(self, "lstm_head"):
            vectors = self.lstm_head(vectors)[0]
        return self.mlp_head(vectors) if hasattr(self, "mlp_head") else vectors
