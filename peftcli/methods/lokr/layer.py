"""LoKr on a layer: the update is w1 ⊗ w2, a grid of multiples of one small matrix or kernel.

Shapes: O = P·O', I = Q·I'; w1 (P, Q) or (P, R) (R, Q); w2 (O', I', K) or (O', R) (R, I'·K). With `use_effective_conv2d`
a kernel of more than one place has a core t2 (R, R, K) and w2_a (R, O'), w2_b (R, I').

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2023,
arXiv:2309.14859.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from peftcli.adapters.lycoris import LycorisLayer, core_size, from_core
from peftcli.methods.lokr.config import LoKrConfig


class LoKrLayer(LycorisLayer):
    """nn.Linear, nn.Conv1d or nn.Conv2d with LoKr adapters on it."""

    adapter_layer_names = (
        "lokr_w1",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
    )

    def sizes(self, rank: int, config: LoKrConfig) -> dict[str, tuple[int, ...]]:
        """A matrix is of rank R where that is below half its longer side; the left one only if it is asked for."""
        outputs, inputs, *kernel = self.shape
        rows, height = factorized(outputs, config.decompose_factor)
        columns, width = factorized(inputs, config.decompose_factor)
        places = math.prod(kernel)
        sizes: dict[str, tuple[int, ...]] = {}
        if config.decompose_both and rank < max(rows, columns) / 2:
            sizes |= {"lokr_w1_a": (rows, rank), "lokr_w1_b": (rank, columns)}
        else:
            sizes |= {"lokr_w1": (rows, columns)}
        if rank >= max(height, width) / 2:
            sizes |= {"lokr_w2": (height, width, *kernel)}
        elif config.use_effective_conv2d and places > 1:
            sizes |= {"lokr_w2_a": (rank, height), "lokr_w2_b": (rank, width)}
            sizes |= {"lokr_t2": core_size(rank, kernel)}
        else:
            sizes |= {"lokr_w2_a": (height, rank), "lokr_w2_b": (rank, width * places)}
        return sizes

    def zeros(self, sizes: dict[str, tuple[int, ...]], config: LoKrConfig) -> str:
        """One factor of the left matrix, or of the right one."""
        if config.init_weights == "lycoris":
            return "lokr_w2" if "lokr_w2" in sizes else "lokr_w2_b"
        if config.init_weights:
            return "lokr_w1" if "lokr_w1" in sizes else "lokr_w1_a"
        return ""

    def unscaled(self, name: str) -> torch.Tensor:
        """The places of a kernel stay together, behind the inputs that they belong to."""
        parts = {
            part: self.tensor(part, name) for part in self.adapter_layer_names if name in getattr(self, part)
        }
        return torch.kron(*matrices(parts))

    def __repr__(self) -> str:
        return f"lokr.{super().__repr__()}"


def matrices(parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """w1 and w2, flat per output, from an adapter's tensors: either may be kept in factors."""
    left_PQ = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        return left_PQ, parts["lokr_w2"].flatten(1)
    factors = parts["lokr_w2_a"], parts["lokr_w2_b"]
    right = from_core(parts["lokr_t2"], *factors) if "lokr_t2" in parts else factors[0] @ factors[1]
    return left_PQ, right.flatten(1)


def factorized(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`: the first is `factor`, or else the largest below it and the square root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    first = next(number for number in range(most, 0, -1) if size % number == 0)
    return first, size // first
