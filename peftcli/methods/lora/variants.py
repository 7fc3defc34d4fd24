"""What an adapter adds to a layer: plainly B A, with DoRA's magnitudes, or from certain tokens on (aLoRA).

A layer holds one of these per adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from peftcli.adapters.weights import HALF, base_weight, weight_of
from peftcli.errors import AdapterError
from peftcli.methods.lora.caching import remembered

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer


class Variant(ABC):
    """How A and B act on a layer. Stateless: weights live on the layer."""

    # Whether it acts on all that a layer is given; if not, it must be told on what.
    acts_everywhere = True

    def add(self, layer: LoraLayer, name: str) -> None:  # noqa: B027  (most variants need nothing)
        """Makes what the variant needs beside A and B."""

    def output_scale(self, layer: LoraLayer, name: str) -> torch.Tensor | None:  # noqa: ARG002  (most have none)
        """What multiplies W x + scaling · B A x, one number an output; None for 1."""
        return None

    @abstractmethod
    def forward(
        self,
        layer: LoraLayer,
        name: str,
        x: torch.Tensor,
        result: torch.Tensor,
        offsets_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The layer's output with this adapter: `result` is what it was without.

        `offsets_B` says of each row how many of its last tokens a variant acts on that does not act everywhere.
        """

    @abstractmethod
    def merged(self, layer: LoraLayer, name: str, W_OI: torch.Tensor, sum_OI: torch.Tensor) -> torch.Tensor:
        """The matrix with this adapter in it: `sum_OI` is W_OI, the base's own, with those that came before."""


class Plain(Variant):
    """W + scaling · B A."""

    def forward(
        self,
        layer: LoraLayer,
        name: str,
        x: torch.Tensor,
        result: torch.Tensor,
        offsets_B: torch.Tensor | None = None,  # noqa: ARG002  (only aLoRA asks)
    ) -> torch.Tensor:
        """Adds scaling · B A dropout(x)."""
        return result + layer.update(name, layer.lora_dropout[name](x)) * layer.scaling[name]

    def merged(self, layer: LoraLayer, name: str, W_OI: torch.Tensor, sum_OI: torch.Tensor) -> torch.Tensor:
        """Adds the product, scaled."""
        return sum_OI + _product(layer, name, W_OI.dtype)


class Magnitude(nn.Module):
    """DoRA's trained magnitude of every output, in a module since PEFT's live model has one there."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


class Dora(Variant):
    """m · (W + scaling · B A) / ‖W + scaling · B A‖, the norm taken per output.

    The norm is a constant to the gradient (section 4.3 of the paper), so it is computed outside the graph and
    nothing of it is kept for the backward pass.

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv:2402.09353.
    """

    def add(self, layer: LoraLayer, name: str) -> None:
        """The magnitudes start as the norms, so that a fresh adapter changes nothing."""
        norm_O = self._norm(layer, name)
        dtype = layer.factors(name)[1].dtype
        layer.lora_magnitude_vector[name] = Magnitude(
            norm_O.to(dtype).reshape(layer.magnitude_shape(len(norm_O)))
        )

    def forward(
        self,
        layer: LoraLayer,
        name: str,
        x: torch.Tensor,
        result: torch.Tensor,
        offsets_B: torch.Tensor | None = None,  # noqa: ARG002  (only aLoRA asks)
    ) -> torch.Tensor:
        """Adds (m / norm - 1) · W x + (m / norm) · scaling · B A x; dropout acts on both x, as in PEFT."""
        dropout = layer.lora_dropout[name]
        if layer.training and not isinstance(dropout, nn.Identity):
            dtype = torch.promote_types(x.dtype, layer.factors(name)[0].dtype)
            x = dropout(x.to(dtype))
            base = layer.base_product(x)
        else:
            bias = getattr(layer.get_base_layer(), "bias", None)
            base = result if bias is None else result - layer.per_output(bias)
        scale = layer.per_output(self.output_scale(layer, name))
        return result + (scale - 1) * base + (scale * layer.scaling[name]) * layer.update(name, x)

    def merged(self, layer: LoraLayer, name: str, W_OI: torch.Tensor, sum_OI: torch.Tensor) -> torch.Tensor:
        """(m / norm) · (what was there + scaling · B A), the norm being that of W + scaling · B A."""
        product_OI = _product(layer, name, W_OI.dtype)
        scale_O = self._magnitude(layer, name).to(W_OI.dtype) / (W_OI + product_OI).norm(dim=1)
        merged_OI: torch.Tensor = scale_O[:, None] * (sum_OI + product_OI)
        return merged_OI

    def output_scale(self, layer: LoraLayer, name: str) -> torch.Tensor:
        """The magnitudes by the norms: m / ‖W + scaling · B A‖."""
        return self._magnitude(layer, name) / self._norm(layer, name)

    def _magnitude(self, layer: LoraLayer, name: str) -> torch.Tensor:
        return weight_of(layer.lora_magnitude_vector[name]).flatten()

    def _norm(self, layer: LoraLayer, name: str) -> torch.Tensor:
        return remembered(layer, name, self._measured)

    @torch.no_grad()
    def _measured(self, layer: LoraLayer, name: str) -> torch.Tensor:
        weight = base_weight(layer.get_base_layer())
        with torch.autocast(weight.device.type, enabled=False):
            W_OI = layer.matrix(weight.float() if weight.dtype in HALF else weight)
            norm_O: torch.Tensor = (W_OI + _product(layer, name, W_OI.dtype)).norm(dim=1)
            return norm_O


class Activated(Variant):
    """W + scaling · B A on a row's last tokens, from its invocation tokens on; W alone on those before.

    Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", 2025, arXiv:2504.12397.
    """

    acts_everywhere = False

    def forward(
        self,
        layer: LoraLayer,
        name: str,
        x: torch.Tensor,
        result: torch.Tensor,
        offsets_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adds scaling · B A dropout(x) there; nothing where it is not told where, but with gradients (of 0)."""
        offsets_B = torch.zeros(len(x), device=x.device) if offsets_B is None else offsets_B.to(x.device)
        if len(offsets_B) != len(x) or x.dim() not in (2, 3):
            raise AdapterError(
                f"aLoRA: a layer is given {list(x.shape)} for {len(offsets_B)} rows of tokens, and cannot tell which "
                "are whose; leave it out of target_modules"
            )
        left_T = torch.arange(x.shape[1] if x.dim() == 3 else 1, 0, -1, device=x.device)
        scale_BT = (left_T <= offsets_B[:, None]) * layer.scaling[name]
        update = layer.update(name, layer.lora_dropout[name](x))
        return result + update * (scale_BT if x.dim() == 2 else scale_BT[..., None]).to(update.dtype)

    def merged(
        self,
        layer: LoraLayer,  # noqa: ARG002  (there is nothing to make of them)
        name: str,
        W_OI: torch.Tensor,  # noqa: ARG002
        sum_OI: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Refuses, for it is no change of the weight.

        Raises:
            AdapterError: always.
        """
        raise AdapterError(f"{name!r} acts only from its alora_invocation_tokens on: it cannot be merged")


def _product(layer: LoraLayer, name: str, dtype: torch.dtype) -> torch.Tensor:
    A_RI, B_OR = layer.factors(name)
    return (B_OR.to(dtype) @ A_RI.to(dtype)) * layer.scaling[name]


VARIANTS: dict[str, Variant] = {"plain": Plain(), "dora": Dora(), "activated": Activated()}
