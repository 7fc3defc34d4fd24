"""What an adapter adds to a layer's weight, as its own tensors say it: for norms and comparisons without the base.

No update is written out that need not be: of a product of thin matrices the inner products are those of R × R ones.
Suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

# Entries of a matrix that is written out: half a gigabyte in float64. A small file can say one of any size.
MOST = 2**26


class Update(ABC):
    """A matrix of float64."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""

    @property
    def rank(self) -> int | None:
        """The number of terms that it is a sum of, where it is one."""
        return None

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """The matrix itself, (O, I)."""

    def inner(self, other: Update) -> float | None:
        """The sum of the products of their entries; None where they have not the same shape, or are too large."""
        if self.shape != other.shape or not affordable(*self.shape):
            return None
        return float((self.dense() * other.dense()).sum())


@dataclass(frozen=True, eq=False)
class Product(Update):
    """B A, with B (O, R) and A (R, I)."""

    B_OR: torch.Tensor
    A_RI: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.B_OR.shape[0], self.A_RI.shape[1]

    @property
    def rank(self) -> int | None:
        """The inner dimension."""
        return self.A_RI.shape[0]

    def dense(self) -> torch.Tensor:
        """The product."""
        return self.B_OR @ self.A_RI

    def inner(self, other: Update) -> float | None:
        """tr(Aᵀ Bᵀ B' A') = sum((Bᵀ B') ∘ (A A'ᵀ))."""
        if not isinstance(other, Product) or self.shape != other.shape:
            return super().inner(other)
        # A file may say any rank; the smaller of both ways is never larger than the factors.
        if self.A_RI.shape[0] * other.A_RI.shape[0] > self.shape[0] * self.shape[1]:
            return float((self.dense() * other.dense()).sum())
        return float(((self.B_OR.T @ other.B_OR) * (self.A_RI @ other.A_RI.T)).sum())


@dataclass(frozen=True, eq=False)
class Kronecker(Update):
    """L ⊗ R, a grid of multiples of R."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the grid."""
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    def dense(self) -> torch.Tensor:
        """The grid."""
        return torch.kron(self.left, self.right)

    def inner(self, other: Update) -> float | None:
        """Where the grids are alike, the product of both parts' inner products."""
        if isinstance(other, Kronecker) and self.left.shape == other.left.shape and self.shape == other.shape:
            return float((self.left * other.left).sum() * (self.right * other.right).sum())
        return super().inner(other)


@dataclass(frozen=True, eq=False)
class Dense(Update):
    """A matrix that is no product."""

    D_OI: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.D_OI.shape[0], self.D_OI.shape[1]

    def dense(self) -> torch.Tensor:
        """The matrix."""
        return self.D_OI


def affordable(*sizes: int) -> bool:
    """Whether a matrix of these sizes may be written out."""
    return math.prod(sizes) <= MOST
