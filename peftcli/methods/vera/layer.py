"""VeRA on a linear layer: W x becomes W x + b ∘ B (d ∘ A x).

Shapes: vera_lambda_d (R,) and vera_lambda_b (O,) are trained. vera_A (R, I) and vera_B (O, R) are random and shared:
as large as the largest layer needs, and cut to each one's size.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2023, arXiv:2310.11454.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.adapters.additive import FactoredLinear
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.methods.vera.config import VeraConfig


class Linear(FactoredLinear):
    """nn.Linear, or the Conv1D of Transformers, with VeRA adapters on it."""

    adapter_layer_names = ("vera_lambda_b", "vera_lambda_d")
    other_param_names = ("r", "vera_dropout")

    def __init__(self, base_layer: nn.Module, vera_A: BufferDict, vera_B: BufferDict) -> None:
        super().__init__(base_layer)
        self.vera_lambda_b, self.vera_lambda_d = nn.ParameterDict(), nn.ParameterDict()
        self.vera_A, self.vera_B = vera_A, vera_B
        self.vera_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}

    def add(self, name: str, config: VeraConfig, *, autocast: bool) -> None:
        """Makes a new adapter: b at zero, or all at random."""
        base = self.get_base_layer()
        dtype, device = adapter_dtype(base, autocast=autocast), weight_of(base).device
        self.r[name] = config.r
        self.vera_dropout[name] = nn.Dropout(config.vera_dropout) if config.vera_dropout else nn.Identity()
        b_O = torch.full((self.out_features,), float(not config.init_weights), dtype=dtype, device=device)
        d_R = torch.full((config.r,), config.d_initial, dtype=dtype, device=device)
        self.vera_lambda_b[name] = nn.Parameter(b_O)
        self.vera_lambda_d[name] = nn.Parameter(d_R if config.init_weights else torch.randn_like(d_R))

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The projections, scaled."""
        A_RI, B_OR, b_O, d_R = self._parts(name, self.vera_lambda_d[name].dtype)
        return d_R[:, None] * A_RI, b_O[:, None] * B_OR

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What is scaled is not the projections, which are large, but what comes out of them."""
        dtype = torch.promote_types(x.dtype, self.vera_lambda_d[name].dtype)
        A_RI, B_OR, b_O, d_R = self._parts(name, dtype)
        hidden = F.linear(self.vera_dropout[name](x.to(dtype)), A_RI) * d_R
        return F.linear(hidden, B_OR) * b_O

    def _parts(
        self, name: str, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        b_O, d_R = self.vera_lambda_b[name].to(dtype), self.vera_lambda_d[name].to(dtype)
        A_RI = self.vera_A[name][:, : self.in_features].to(d_R)
        B_OR = self.vera_B[name][: self.out_features].to(d_R)
        return A_RI, B_OR, b_O, d_R

    def __repr__(self) -> str:
        return f"vera.{super().__repr__()}"
