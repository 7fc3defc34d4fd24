"""VB-LoRA on a linear layer: W x becomes W x + B A x; A and B consist of pieces, each mixed of K vectors of a bank.

Shapes: N vectors of length L, pieces P = I / L or O / L. vblora_vector_bank (N, L) is trained and shared by all layers;
vblora_logits_A (R, P, N) and vblora_logits_B (P, R, N) say which K vectors a piece is mixed of, and how.

Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", 2024, arXiv:2405.15179.
"""

from __future__ import annotations

import torch
from torch import nn

from peftcli.adapters.additive import FactoredLinear
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.vblora.config import VBLoRAConfig


class Linear(FactoredLinear):
    """nn.Linear, or the Conv1D of Transformers, with VB-LoRA adapters on it."""

    adapter_layer_names = ("vblora_logits_A", "vblora_logits_B")
    other_param_names = ("r", "topk", "vblora_dropout")

    def __init__(self, base_layer: nn.Module, vblora_vector_bank: nn.ParameterDict) -> None:
        super().__init__(base_layer)
        self.vblora_logits_A, self.vblora_logits_B = nn.ParameterDict(), nn.ParameterDict()
        self.vblora_vector_bank = vblora_vector_bank
        self.vblora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.topk: dict[str, int] = {}

    def add(self, name: str, config: VBLoRAConfig, *, autocast: bool) -> None:
        """Makes a new adapter: random mixtures."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.r[name], self.topk[name] = config.r, config.topk
        self.vblora_dropout[name] = (
            nn.Dropout(config.vblora_dropout) if config.vblora_dropout else nn.Identity()
        )
        shape_A = (config.r, self.in_features // config.vector_length, config.num_vectors)
        shape_B = (self.out_features // config.vector_length, config.r, config.num_vectors)
        for container, shape in ((self.vblora_logits_A, shape_A), (self.vblora_logits_B, shape_B)):
            logits = torch.empty(shape, dtype=dtype, device=device).normal_(std=config.init_logits_std)
            container[name] = nn.Parameter(logits)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Their pieces in a row: along the inputs, and along the outputs."""
        A_RPL = self._mixed(name, self.vblora_logits_A[name])
        B_PRL = self._mixed(name, self.vblora_logits_B[name])
        return A_RPL.flatten(1), B_PRL.mT.flatten(0, 1)

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """With dropout."""
        return super().update(name, self.vblora_dropout[name](x))

    def _mixed(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        """Pieces (…, L) from logits (…, N)."""
        highest, places = logits.topk(self.topk[name])
        vectors: torch.Tensor = self.vblora_vector_bank[name].to(logits)[places]  # (…, K, L)
        return (highest.softmax(-1)[..., None] * vectors).sum(-2)

    def __repr__(self) -> str:
        return f"vblora.{super().__repr__()}"
