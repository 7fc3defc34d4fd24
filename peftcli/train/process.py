"""What one training process is set up with: device, precision, seeds, process group, trackers."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    set_seed,
)

from peftcli.errors import Interrupted, RecipeError
from peftcli.recipe.training import Training


@contextmanager
def training_process(
    settings: Training, output_dir: Path, *, tokens_per_step: float = 1.0
) -> Iterator[Accelerator]:
    """Sets this process up for training, and puts global settings back at the end.

    Args:
        settings: the recipe's `training`.
        output_dir: where trackers that write files write them, in `runs/`.
        tokens_per_step: trained tokens that a step is expected to have; the first loss scale of fp16 needs
            it.

    Raises:
        RecipeError: for a precision, device or tracker that is not there.
    """
    trackers = tracker_names(settings)
    # Accelerate keeps its state for the life of the process; a second run in it may want another precision.
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 (it has no public way)
    accelerator = Accelerator(
        mixed_precision=precision(settings),
        # Where there is no accelerator, Accelerate must be told so, or it leaves launched processes alone.
        cpu=settings.use_cpu or not torch.accelerator.is_available(),
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            str(output_dir), logging_dir=str(output_dir / "runs" / (settings.run_name or ""))
        ),
        kwargs_handlers=[
            ddp_options(settings),
            group_options(settings),
            GradScalerKwargs(init_scale=loss_scale(tokens_per_step)),
        ],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RecipeError(
            f"{launched} processes were launched, but they form a group of {accelerator.num_processes}; launch them by "
            "`torchrun --nproc-per-node N -m peftcli train …`"
        )
    with ExitStack() as stack:
        stack.enter_context(_verbosity(log_level(settings, accelerator)))
        stack.enter_context(_tf32(settings.tf32, accelerator.device))
        stack.enter_context(_determinism(on=settings.full_determinism))
        set_seed(settings.seed, device_specific=True)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)
        try:
            yield accelerator
        except Interrupted:
            # All processes have agreed to stop.
            _leave_group()
            raise
        _leave_group()


def _leave_group() -> None:
    """Ends the process group: its threads must not outlive the interpreter, which C++ answers with an abort."""
    if dist.is_available() and dist.is_initialized():
        # A thread of Gloo's takes the interpreter's lock to let go of the tensors that it worked on last. While this
        # sleeps it can; while the group is taken down it cannot, and the two would wait for one another forever.
        dist.barrier()
        time.sleep(0.1)
        dist.destroy_process_group()


def precision(settings: Training) -> str:
    """Accelerate's name for the recipe's precision, which this machine must have."""
    has_cuda = torch.cuda.is_available() and not settings.use_cpu
    if settings.fp16 and not has_cuda:
        raise RecipeError(
            "training.fp16 needs a CUDA device, and there is none; take bf16, which a CPU has too"
        )
    if settings.bf16 and has_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("training.bf16 needs an Ampere or newer GPU; take fp16")
    if settings.fp16:
        return "fp16"
    return "bf16" if settings.bf16 else "no"


def loss_scale(tokens_per_step: float) -> float:
    """The first loss scale of fp16, a power of two: PyTorch's own is for a mean loss, and a step's is a sum."""
    return 2.0**16 / 2.0 ** round(math.log2(max(tokens_per_step, 1.0)))


def ddp_options(settings: Training) -> DistributedDataParallelKwargs:
    """What DistributedDataParallel is made with; PyTorch's own default where the recipe says nothing."""
    given = {
        "find_unused_parameters": settings.ddp_find_unused_parameters,
        "bucket_cap_mb": settings.ddp_bucket_cap_mb,
        "broadcast_buffers": settings.ddp_broadcast_buffers,
        "static_graph": settings.ddp_static_graph,
    }
    return DistributedDataParallelKwargs(
        **{name: value for name, value in given.items() if value is not None}
    )


def group_options(settings: Training) -> InitProcessGroupKwargs:
    """What the process group is formed with."""
    # One process forms no group, and has no backend for it.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return InitProcessGroupKwargs(
        backend=None if alone else settings.ddp_backend, timeout=timedelta(seconds=settings.ddp_timeout)
    )


def tracker_names(settings: Training) -> list[str]:
    """The trackers to report to, each installed.

    Raises:
        RecipeError: for one that is not.
    """
    given = settings.report_to or []
    names = [given] if isinstance(given, str) else given
    available = [str(name) for name in get_available_trackers()]
    if "all" in names:
        return available
    for name in names:
        if name not in [*available, "none"]:
            raise RecipeError(
                f"training.report_to: {name} is not installed; run `pip install {name}`, or take it out"
            )
    return [name for name in names if name != "none"]


def start_trackers(accelerator: Accelerator, settings: Training) -> None:
    """Opens a run in every tracker, under the recipe's project and run name."""
    name = settings.run_name
    accelerator.init_trackers(
        settings.project,
        config={key: _scalar(value) for key, value in settings.model_dump().items()},
        init_kwargs={
            "wandb": {"name": name},
            "mlflow": {"run_name": name},
            "trackio": {"name": name},
            "swanlab": {"experiment_name": name},
        }
        if name
        else {},
    )


def speaks(settings: Training, accelerator: Accelerator) -> bool:
    """Whether this process writes to the terminal: one on each machine, or one in all."""
    return bool(
        accelerator.is_local_main_process if settings.log_on_each_node else accelerator.is_main_process
    )


def log_level(settings: Training, accelerator: Accelerator) -> int | None:
    """The level of the libraries' loggers in this process; None leaves them as they are."""
    level = settings.log_level if speaks(settings, accelerator) else settings.log_level_replica
    return None if level == "passive" else logging.getLevelNamesMapping()[level.upper()]


def _scalar(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


@contextmanager
def _verbosity(level: int | None) -> Iterator[None]:
    ours = logging.getLogger("peftcli")
    before, before_ours = transformers.logging.get_verbosity(), ours.level
    if level is not None:
        transformers.logging.set_verbosity(level)
        ours.setLevel(level)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        ours.setLevel(before_ours)


@contextmanager
def _tf32(wanted: bool | None, device: torch.device) -> Iterator[None]:
    if wanted and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise RecipeError("training.tf32 needs an Ampere or newer GPU; leave it out")
    backends: Any = torch.backends  # PyTorch's types do not know the setting
    before = backends.fp32_precision
    if wanted is not None:
        backends.fp32_precision = "tf32" if wanted else "ieee"
    try:
        yield
    finally:
        backends.fp32_precision = before


@contextmanager
def _determinism(*, on: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
    if on:
        # cuBLAS reads it when it starts; without it PyTorch refuses deterministic matrix products on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
