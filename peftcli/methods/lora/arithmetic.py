"""Sums of task vectors: plain, or after small or random entries were dropped, or where signs agree.

A task vector is what an adapter adds to a weight, or one of its factors; T is the number of them.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023, arXiv:2306.01708.
Yu et al., "Language Models are Super Mario" (DARE), 2023, arXiv:2311.03099.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from peftcli.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One way to add up task vectors.

    Attributes:
        prune: what is dropped of each before, by the share that is kept; nothing where None.
        elects_signs: whether only entries that have the sign of the majority count, and are averaged.
    """

    prune: Callable[[torch.Tensor, float], torch.Tensor] | None = None
    elects_signs: bool = False

    def sum(
        self, tasks: Sequence[torch.Tensor], weights: Sequence[float], density: float | None, majority: str
    ) -> torch.Tensor:
        """The weighted sum.

        Args:
            tasks: tensors of one shape.
            weights: one for each.
            density: the share of entries to keep, where some are dropped.
            majority: how signs are elected: by their "total" or their "frequency".

        Raises:
            AdapterError: where a density is needed and is none.
        """
        if self.prune is not None:
            if density is None or not 0 <= density <= 1:
                raise AdapterError(f"density must be from 0 to 1 for this combination, not {density}")
            tasks = [self.prune(task, density) for task in tasks]
        stacked = torch.stack(list(tasks))
        shape = (-1, *[1] * (stacked.dim() - 1))
        weighted = stacked * torch.tensor(weights, dtype=stacked.dtype, device=stacked.device).reshape(shape)
        if not self.elects_signs:
            return weighted.sum(0)
        kept = _has_elected_sign(stacked, majority)
        return (weighted * kept).sum(0) / kept.sum(0).clamp(min=1)


def largest(task: torch.Tensor, density: float) -> torch.Tensor:
    """The largest entries; the others zero."""
    kept = torch.zeros_like(task).flatten()
    kept[task.abs().flatten().topk(int(density * task.numel())).indices] = 1
    return task * kept.reshape(task.shape)


def random(task: torch.Tensor, density: float) -> torch.Tensor:
    """Entries drawn at random, enlarged so that the mean stays; the others zero."""
    if density in (0, 1):
        return task * density
    return task * torch.bernoulli(torch.full_like(task, density)) / density


def _has_elected_sign(stacked: torch.Tensor, majority: str) -> torch.Tensor:
    if majority not in ("total", "frequency"):
        raise AdapterError(f"majority_sign_method must be total or frequency, not {majority!r}")
    signs = stacked.sign()
    votes = (stacked if majority == "total" else signs).sum(0)
    return signs == torch.where(votes >= 0, 1, -1)


# By the name of the combination, without its `_svd`.
ARITHMETICS = {
    "linear": Arithmetic(),
    "ties": Arithmetic(largest, elects_signs=True),
    "dare_linear": Arithmetic(random),
    "dare_ties": Arithmetic(random, elects_signs=True),
    "magnitude_prune": Arithmetic(largest),
}
