"""LoRA on embeddings: a token's row gets scaling · B A[:, token]."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.methods.lora.layer import LoraLayer


class Embedding(LoraLayer):
    """An embedding with LoRA adapters: A (R, rows) and B (columns, R) are bare parameters, as in PEFT.

    Dropout would drop whole tokens, so there is none here (nor in PEFT).
    """

    drops_inputs = False

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        base: Any = self.get_base_layer()
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim

    def make_factors(self, name: str, r: int, device: torch.device, dtype: torch.dtype) -> None:
        """A (r, rows) and B (columns, r)."""
        A_RI = torch.empty(r, self.in_features, device=device, dtype=dtype)
        B_OR = torch.empty(self.out_features, r, device=device, dtype=dtype)
        self.lora_embedding_A[name], self.lora_embedding_B[name] = nn.Parameter(A_RI), nn.Parameter(B_OR)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """As they are."""
        return self.lora_embedding_A[name], self.lora_embedding_B[name]

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A row per token becomes a column per token."""
        return weight.T

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """A row per token again."""
        return matrix_OI.T

    def base_product(self, x: torch.Tensor) -> torch.Tensor:
        """The base's rows."""
        product: torch.Tensor = self.get_base_layer()(x)
        return product

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The tokens' columns of A, times B; scaled as Gemma scales its embeddings."""
        base: Any = self.get_base_layer()
        A_RI, B_OR = self.factors(name)
        columns = F.embedding(
            x, A_RI.T, padding_idx=base.padding_idx, scale_grad_by_freq=base.scale_grad_by_freq
        )
        scale = getattr(base, "embed_scale", 1.0)
        return (columns @ B_OR.T) * scale

    def per_output(self, values_O: torch.Tensor) -> torch.Tensor:
        """As it is: columns are the last dimension."""
        return values_O
