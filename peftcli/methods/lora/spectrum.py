"""The directions in which numbers vary most, found batch by batch."""

from __future__ import annotations

import torch

from peftcli.errors import AdapterError

# Whatever the random numbers of a fast decomposition, they are always the same: PEFT's.
_SEED, _ROUNDS = 42, 4


class Spectrum:
    """Incremental principal components of a layer's inputs.

    What was seen is kept as its mean, its variance and its K components with their singular values, which stand for
    it when more comes. Numbers are PEFT's for the same batches. Suffixes: N samples, I inputs, K components.

    Ross et al., "Incremental Learning for Robust Visual Tracking", 2008.

    Attributes:
        components_KI: unit vectors, those with the largest singular values first; None before there is enough to see.
        values_K: their singular values.
        ratios_K: the share of all variance that each explains.
        settled_K: whether each is where it was before the last batch.
    """

    def __init__(self, name: str, size: int, threshold: float) -> None:
        self.name, self.size, self.threshold = name, size, threshold
        self.components_KI: torch.Tensor | None = None
        self.values_K = self.ratios_K = torch.empty(0)
        self.settled_K = torch.zeros(size, dtype=torch.bool)
        self._waiting: list[torch.Tensor] = []
        self._count = 0
        self._mean_I = self._variance_I = torch.empty(0)

    def is_settled(self, number: int) -> bool:
        """Whether the first so many components are."""
        return bool(self.settled_K[:number].all())

    def add(self, x_NI: torch.Tensor) -> None:
        """Takes a batch; one with fewer samples than there are components waits for the next.

        Raises:
            AdapterError: where it holds what is not finite.
        """
        if not bool(x_NI.isfinite().all()):
            raise AdapterError(
                f"{self.name}: the rows give it inputs that are not finite; the base is broken"
            )
        # Apple's GPUs have no float64.
        self._waiting.append(x_NI.to("cpu" if x_NI.device.type == "mps" else x_NI.device, torch.float32))
        if sum(map(len, self._waiting)) >= self.size:
            self._take(torch.cat(self._waiting))
            self._waiting = []

    def _take(self, x_NI: torch.Tensor) -> None:
        before_KI, mean_I, seen = self.components_KI, self._mean_I, self._count
        total = seen + len(x_NI)
        self._count_in(x_NI, total)
        if before_KI is None:
            stacked_MI = (x_NI - self._mean_I).to(x_NI.dtype)
        else:
            centre_I = x_NI.mean(0)
            drift_I = (seen / total * len(x_NI)) ** 0.5 * (mean_I - centre_I)
            stacked_MI = torch.vstack([self.values_K[:, None] * before_KI, x_NI - centre_I, drift_I])
        V_KI, self.values_K = self._decomposed(stacked_MI)
        self.components_KI = V_KI
        self.ratios_K = self.values_K.square() / (self._variance_I * total).sum()
        if before_KI is not None:
            similarity_K = torch.cosine_similarity(V_KI, before_KI)
            self.settled_K = similarity_K >= self.threshold

    def _count_in(self, x_NI: torch.Tensor, total: int) -> None:
        """Mean and variance of all that was seen, in float64."""
        count, seen = len(x_NI), self._count
        sum_I = x_NI.sum(0, dtype=torch.float64)
        off_NI = x_NI - sum_I / count
        squares_I = off_NI.square().sum(0) - off_NI.sum(0).square() / count
        if seen:
            share, old_sum_I = seen / count, self._mean_I * seen
            apart_I = (old_sum_I / share - sum_I).square()
            squares_I = self._variance_I * seen + squares_I + share / total * apart_I
            sum_I = old_sum_I + sum_I
        self._mean_I, self._variance_I, self._count = sum_I / total, squares_I / total, total

    def _decomposed(self, x_MI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Right singular vectors, their largest entry positive, and singular values."""
        with torch.random.fork_rng(devices=[x_MI.device] if x_MI.is_cuda else []):
            torch.manual_seed(_SEED)
            _, S_K, V_IK = torch.svd_lowrank(x_MI, q=min(2 * self.size, *x_MI.shape), niter=_ROUNDS)
        V_KI = V_IK.T[: self.size]
        signs_K = V_KI.gather(1, V_KI.abs().argmax(1, keepdim=True)).sign()
        return V_KI * signs_K, S_K[: self.size]
