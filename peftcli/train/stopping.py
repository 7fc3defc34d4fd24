"""Ctrl-C and SIGTERM: the first asks for a stop after the step, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from peftcli.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a stop was asked for, in any process.

    Processes must stop after the same step, or one would wait for another forever: each puts its own flag
    into the sums that are shared in every step (`vote`), and all read the shared one (`agreed`).
    """

    def __init__(self, *, processes: int = 1) -> None:
        self.requested = False
        self._alone = processes == 1
        self._votes: Tensor | None = None
        # On GPUs: the last two steps' votes, each with the event that says that it has come to the host.
        self._sent: deque[tuple[Tensor, torch.cuda.Event]] = deque(maxlen=2)

    def vote(self, votes: Tensor) -> None:
        """Takes the sum of all processes' flags, on the device, and sends it to the host without waiting."""
        if self._alone:
            return
        if votes.device.type != "cuda":
            self._votes = votes.cpu()
            return
        sent = torch.empty((), dtype=votes.dtype, pin_memory=True)
        sent.copy_(votes, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # PyTorch's own
        arrived.record()
        self._sent.append((sent, arrived))

    def agreed(self) -> bool:
        """Whether all processes stop now.

        On GPUs the vote of the step before counts: this step's is still being computed, and to wait for it would let
        the GPU run dry.
        """
        if self._alone:
            return self.requested
        if len(self._sent) == 2:
            votes, arrived = self._sent[0]
            arrived.synchronize()
            return bool(votes > 0)
        return self._votes is not None and bool(self._votes > 0)

    def ask(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002 (a handler)
        """A signal has come."""
        if self.requested:
            name = signal.Signals(number).name
            raise Interrupted(
                f"stopped at once by a second {name}; go on from the last checkpoint with --resume"
            )
        self.requested = True


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """Sends SIGINT and SIGTERM to the request; only the main thread may, elsewhere they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, request.ask) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
