"""The prompt of CPT: embeddings of tokens that do not change, and how far each was moved.

Shapes: N virtual tokens, E numbers of one.

Blau et al., "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods", 2024,
arXiv:2410.17222.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peftcli.adapters.prompt_method import SAVED, PromptEncoder

# The width for which epsilons are given.
_WIDTH = 2048


class ContextPrompt(PromptEncoder):
    """`embedding` (N, E), frozen, and `delta_embedding` (N, E), which starts at zero. The file holds their sum."""

    def __init__(self, width: int, types: Sequence[int], epsilon: float, template_epsilon: float) -> None:
        super().__init__(len(types), width)
        self.delta_embedding = nn.Embedding(len(types), width)
        nn.init.zeros_(self.delta_embedding.weight)
        # Labels (multiples of 4) stay where they are.
        reach = (0.0, template_epsilon, epsilon, template_epsilon)
        self._reach = [reach[kind % 4] * math.sqrt(width / _WIDTH) for kind in types]

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """(…, E). A step that went too far is first taken back to the ball of radius epsilon, for good."""
        self._project()
        moves: torch.Tensor = self._reachable() * self.delta_embedding.weight
        vectors: torch.Tensor = self.embedding(indices) + nn.functional.embedding(indices, moves)
        return vectors

    def saved(self) -> dict[str, torch.Tensor]:
        """The sum."""
        with torch.no_grad():
            return {SAVED: self(self.indices)[0]}

    def take(self, saved: Mapping[str, torch.Tensor]) -> None:
        """A file's prompt has been moved already: it is where moves start now."""
        self.embedding.weight.data = saved[SAVED]
        nn.init.zeros_(self.delta_embedding.weight)

    def unsaved(self) -> dict[str, torch.Tensor]:
        """The two parts of the sum."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def trained(self, trained: bool) -> None:
        """Only the moves are."""
        self.embedding.requires_grad_(False)
        self.delta_embedding.requires_grad_(trained)

    def _project(self) -> None:
        with torch.no_grad():
            moves = self.delta_embedding.weight
            reach = torch.tensor(self._reach, dtype=moves.dtype, device=moves.device)
            length = moves.norm(dim=1)
            moves.mul_((reach / length.clamp(min=torch.finfo(moves.dtype).tiny)).clamp(max=1).unsqueeze(1))

    def _reachable(self) -> torch.Tensor:
        """Which tokens may move, (N, 1)."""
        weight = self.delta_embedding.weight
        return torch.tensor(self._reach, device=weight.device).gt(0).to(weight.dtype).unsqueeze(1)
