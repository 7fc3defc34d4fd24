"""What is measured while training: loss, tokens, time, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peftcli.train.evaluate import sum_type
from peftcli.train.state import Progress


class Meter:
    """Adds up on the device, since reading off it makes the host wait; `read` brings it into `progress`.

    Its clock stands still during evaluations and checkpoints (`paused`).
    """

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self.progress = progress
        start = [progress.loss_sum, float(progress.tokens), float(progress.input_tokens)]
        self._sums = torch.tensor(start, dtype=sum_type(device), device=device)
        self._seconds = progress.seconds
        self._since = time.perf_counter()

    def add(self, sums: Tensor) -> None:
        """Takes a step's (loss, trained tokens, input tokens)."""
        self._sums += sums

    def read(self) -> None:
        """Brings `progress` up to the last step."""
        loss, tokens, inputs = self._sums.tolist()
        self.progress.loss_sum, self.progress.tokens, self.progress.input_tokens = (
            loss,
            int(tokens),
            int(inputs),
        )
        self.progress.seconds = self._seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors have taken on a GPU, else the most that this process has taken."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
