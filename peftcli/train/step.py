"""One optimizer step: forward and backward over its micro-batches, one gradient, one update.

The gradient is that of the sum of the token losses divided by the number of trained tokens, both over all
micro-batches of the step and all processes. Micro-batches are run backward with their plain sums, and the
gradients are scaled once, when the number of tokens is known: so the same rows give the same update however
they are split. A method's penalty is added to that mean; it is no part of the loss that is logged, which is
to be compared with the evaluations'.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.optim import Optimizer

from peftcli.recipe.names import METRIC_SCHEDULERS
from peftcli.recipe.training import Training
from peftcli.tasks.base import Task
from peftcli.train.evaluate import sum_type
from peftcli.train.failures import FiniteWatch, diverged
from peftcli.train.feed import Batch, MicroBatch, on_device
from peftcli.train.model import TrainedModel
from peftcli.train.schedule import Scheduler
from peftcli.train.stopping import StopRequest

logger = logging.getLogger(__name__)

# A loss scale that has been halved down to this has met nothing but gradients that are not finite.
_LEAST_SCALE = 2.0**-40


@dataclass(frozen=True)
class Engine:
    """What a step is made with."""

    accelerator: Accelerator
    model: TrainedModel
    task: Task
    optimizer: Optimizer
    scheduler: Scheduler
    parameters: Sequence[nn.Parameter]
    settings: Training
    total_steps: int
    watch: FiniteWatch
    stop: StopRequest


@dataclass(frozen=True)
class Stepped:
    """What a step gives, on the device.

    Attributes:
        sums: (loss, trained tokens, input tokens) over all processes; nothing of a step that was skipped.
        grad_norm: before clipping.
        learning_rate: that the step was made with.
        skipped: whether its loss or gradient was not finite, and the weights were left as they were.
    """

    sums: Tensor
    grad_norm: Tensor
    learning_rate: float
    skipped: bool = False


def run_step(engine: Engine, window: Sequence[MicroBatch], number: int) -> Stepped:
    """Makes optimizer step `number` from its micro-batches.

    Raises:
        DivergedError: where the loss or gradient is not finite (on a GPU: where a later look finds it).
    """
    sums = _accumulate(engine, window)
    engine.stop.vote(sums[3])
    learning_rate = float(engine.optimizer.param_groups[0]["lr"])
    grad_norm = _scale_gradients(engine, engine.accelerator.num_processes / sums[1].clamp(min=1))
    # With loss scaling an infinite gradient is an everyday thing: the scaler skips the step and lowers its
    # scale.
    scaled = engine.accelerator.scaler is not None
    skipped = engine.watch.note(number, sums[0], *([] if scaled else [grad_norm]))
    if not skipped and _update(engine, number):
        if engine.model.tuner is not None:
            engine.model.tuner.after_step(number, engine.total_steps)
        if engine.settings.lr_scheduler_type not in METRIC_SCHEDULERS:
            engine.scheduler.step()
    engine.optimizer.zero_grad(set_to_none=True)
    every = engine.settings.torch_empty_cache_steps
    if every is not None and number % every == 0:
        clear_device_cache()
    return Stepped(torch.zeros_like(sums[:3]) if skipped else sums[:3], grad_norm, learning_rate, skipped)


def _accumulate(engine: Engine, window: Sequence[MicroBatch]) -> Tensor:
    """Backward over all micro-batches; the sums of loss, trained tokens, input tokens and stop requests."""
    device = engine.accelerator.device
    sums = torch.zeros(4, dtype=sum_type(device), device=device)
    for micro in window:
        with _gradients_travel(engine, last=micro is window[-1]):
            loss, tokens = _forward_backward(engine, micro)
        sums[0] += loss
        sums[1] += tokens
    if engine.settings.include_num_input_tokens_seen not in {False, "no"}:
        sums[2] += sum(_input_tokens(engine, micro) for micro in window)
    if engine.model.distributed is None:
        return sums
    sums[3] += engine.stop.requested
    reduced: Tensor = engine.accelerator.reduce(sums, "sum")
    return reduced


def _gradients_travel(engine: Engine, *, last: bool) -> AbstractContextManager[None]:
    """Gradients go between processes with a step's last micro-batch, for all of them."""
    distributed = engine.model.distributed
    return nullcontext() if distributed is None or last else distributed.no_sync()


def _forward_backward(engine: Engine, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    batch = on_device(micro.tensors, engine.accelerator.device)
    with engine.accelerator.autocast():
        loss, tokens = engine.task.loss(
            engine.model.stepped, batch, label_smoothing=engine.settings.label_smoothing_factor
        )
    if micro.idle:
        loss, tokens = loss * 0, tokens * 0
    tuner = engine.model.tuner
    penalty = None if tuner is None else tuner.penalty()
    # Once per token, since the gradients of the whole step are divided by its tokens.
    engine.accelerator.backward(loss if penalty is None else loss + tokens * penalty)
    return loss.detach(), tokens


def _input_tokens(engine: Engine, micro: MicroBatch) -> int:
    if micro.idle:
        return 0
    batch: Batch = micro.tensors
    if engine.settings.include_num_input_tokens_seen == "non_padding":
        if "attention_mask" in batch:
            return int(batch["attention_mask"].sum())
        _say_padding_counts()
    main = getattr(engine.model.plain, "main_input_name", "input_ids")
    return int(batch[main].numel() if main in batch else next(iter(batch.values())).numel())


@cache
def _say_padding_counts() -> None:
    logger.warning("these batches have no attention mask: num_input_tokens_seen counts their padding, too")


def _scale_gradients(engine: Engine, scale: Tensor) -> Tensor:
    """Multiplies the gradients by `scale`, clips them, and gives their norm before the clipping."""
    if engine.accelerator.scaler is not None:
        engine.accelerator.scaler.unscale_(engine.optimizer)
    gradients = [parameter.grad for parameter in engine.parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) * scale
    limit = engine.settings.max_grad_norm
    if limit > 0:
        # The small number is PyTorch's clip_grad_norm_'s, so that results are the same as with it.
        scale = scale * (limit / (norm + 1e-6)).clamp(max=1.0)
    # In the gradients' own type: with another one, CUDA would scale them one by one.
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    return norm


def _update(engine: Engine, number: int) -> bool:
    """Lets the optimizer make its step; says whether it did (a loss scaler may skip it)."""
    scaler = engine.accelerator.scaler
    if scaler is None:
        engine.optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(engine.optimizer)
    scaler.update()
    after = scaler.get_scale()
    if after < _LEAST_SCALE:
        raise diverged(number, engine.settings)
    return bool(after >= before)
