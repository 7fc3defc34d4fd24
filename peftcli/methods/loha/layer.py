"""LoHa on a layer: the update is (w1_a w1_b) ∘ (w2_a w2_b), a product of entries, whose rank is up to R².

Shapes: w?_a (O, R) and w?_b (R, I·K). With `use_effective_conv2d` a kernel of more than one place has cores t?
(R, R, K) and w?_a (R, O), w?_b (R, I), which is FedPara's Proposition 3.

Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", 2021,
arXiv:2108.06098.
"""

from __future__ import annotations

import math

import torch
from torch.utils.checkpoint import checkpoint

from peftcli.adapters.lycoris import LycorisLayer, core_size, from_core
from peftcli.methods.loha.config import LoHaConfig


class LoHaLayer(LycorisLayer):
    """nn.Linear, nn.Conv1d or nn.Conv2d with LoHa adapters on it."""

    adapter_layer_names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

    def sizes(self, rank: int, config: LoHaConfig) -> dict[str, tuple[int, ...]]:
        """Of factors, and of cores where a kernel has them."""
        outputs, inputs, *kernel = self.shape
        places = math.prod(kernel)
        if config.use_effective_conv2d and places > 1:
            a, b = (rank, outputs), (rank, inputs)
            cores = dict.fromkeys(("hada_t1", "hada_t2"), core_size(rank, kernel))
        else:
            a, b = (outputs, rank), (rank, inputs * places)
            cores = {}
        return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b, **cores}

    def zeros(self, sizes: dict[str, tuple[int, ...]], config: LoHaConfig) -> str:  # noqa: ARG002
        """One factor of one matrix."""
        return "hada_w2_b" if config.init_weights else ""

    def unscaled(self, name: str) -> torch.Tensor:
        """The product, whose two matrices are made again for the gradient: each is as large as the weight."""
        present = [part for part in self.adapter_layer_names if name in getattr(self, part)]
        tensors = [self.tensor(part, name) for part in present]
        product: torch.Tensor = checkpoint(hadamard, *tensors, use_reentrant=False, preserve_rng_state=False)
        return product

    def __repr__(self) -> str:
        return f"loha.{super().__repr__()}"


def hadamard(
    w1_a: torch.Tensor, w1_b: torch.Tensor, w2_a: torch.Tensor, w2_b: torch.Tensor, *cores: torch.Tensor
) -> torch.Tensor:
    """The product of the entries of two matrices, or of two kernels with these cores."""
    if cores:
        return from_core(cores[0], w1_a, w1_b) * from_core(cores[1], w2_a, w2_b)
    return (w1_a @ w1_b) * (w2_a @ w2_b)
