"""Training that diverges or runs out of memory, told in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peftcli.errors import DivergedError, MemoryLimitError
from peftcli.recipe.training import Training

# PyTorch's allocator for the CPU has no error class of its own.
_ALLOCATOR_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


# So many skipped steps one after another are no accident of a batch: the weights themselves are beyond help.
_SKIPS_IN_A_ROW = 20


class FiniteWatch:
    """Remembers the first step whose loss or gradient was not finite.

    It does so on the device: a look at every step would make the host wait. On the CPU there is no wait, and
    the step is refused before it changes a weight.
    """

    def __init__(self, settings: Training, device: torch.device) -> None:
        self.settings = settings
        self._skipped = 0
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, step: int, *values: Tensor) -> bool:
        """Takes a step's loss and gradient norm; whether the step is to be skipped.

        Raises:
            DivergedError: it is not finite, and that ends the run; or one skipped step too many.
        """
        finite = torch.stack([value.isfinite() for value in values]).all()
        if self.settings.on_nonfinite == "skip":
            # This look at every step makes a GPU wait for the host: the price of going on.
            self._skipped = 0 if bool(finite) else self._skipped + 1
            if self._skipped == _SKIPS_IN_A_ROW:
                raise diverged(step, self.settings, f"{_SKIPS_IN_A_ROW} steps in a row were skipped")
            return self._skipped > 0
        self._first = torch.where(finite | (self._first > 0), self._first, step)
        if self._first.device.type == "cpu":
            self.check()
        return False

    def check(self) -> None:
        """Looks.

        Raises:
            DivergedError: naming the step.
        """
        if step := int(self._first):
            raise diverged(step, self.settings)


def diverged(step: int, settings: Training, more: str = "") -> DivergedError:
    """The error for a loss or gradient that is NaN or infinite."""
    tries = [f"lower training.learning_rate (it is {settings.learning_rate:g})"]
    if not settings.warmup_steps:
        tries.append("set training.warmup_steps")
    if settings.fp16:
        tries.append("take bf16 instead of fp16")
    if not settings.max_grad_norm:
        tries.append("set training.max_grad_norm: 1.0")
    found = f"the loss or its gradient became NaN or infinite at step {step}" + (f": {more}" if more else "")
    return DivergedError(f"{found}; {', or '.join(tries)}", step=step)


@contextmanager
def memory_errors(settings: Training, *, evaluating: str | None = None) -> Iterator[None]:
    """Turns out-of-memory errors, of a device or the machine, into one that says what to change.

    Args:
        settings: the recipe's `training`.
        evaluating: where it is an evaluation, what its batch size is called.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _memory_limit(settings, evaluating) from error
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _ALLOCATOR_WORDS):
            raise _memory_limit(settings, evaluating) from error
        raise


def _memory_limit(settings: Training, evaluating: str | None) -> MemoryLimitError:
    if evaluating is not None:
        rows = settings.per_device_eval_batch_size
        fewer = f"{evaluating} {rows // 2} (it is {rows}), or " if rows > 1 else ""
        return MemoryLimitError(f"out of memory in an evaluation; try {fewer}shorter rows (data.max_length)")
    tries = []
    size, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if size > 1:
        less = (size + 1) // 2
        tries.append(
            f"training.per_device_train_batch_size: {less} with gradient_accumulation_steps: "
            f"{-(-size * steps // less)} (the same step in smaller bites)"
        )
    if not (settings.activation_checkpointing or settings.gradient_checkpointing):
        tries.append("training.activation_checkpointing: true")
    tries.append("a smaller data.max_length")
    return MemoryLimitError(f"out of memory; try {', or '.join(tries)}")
