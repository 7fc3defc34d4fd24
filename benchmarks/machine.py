"""What a benchmark was measured on, and how fast that multiplies matrices."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path
from typing import Any


def has_gpu() -> bool:
    """Whether there is a CUDA device."""
    import torch

    return torch.cuda.is_available()


def peak_memory() -> int:
    """Bytes: the most that was allocated on the GPU, or else the most that this process was resident with."""
    import torch

    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import torch
    import transformers

    return {
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name() if has_gpu() else _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def product_rate(rows: int, inputs: int, outputs: int) -> float:
    """Floating-point operations a second of a (rows, inputs) by (inputs, outputs) product, the best of twenty.

    In float32 on a CPU, in bfloat16 on a GPU.
    """
    import torch

    device = "cuda" if has_gpu() else "cpu"
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    x, w = torch.randn(rows, inputs).to(device, dtype), torch.randn(inputs, outputs).to(device, dtype)
    rates = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(5):
            x @ w
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(5 * 2 * rows * inputs * outputs / (time.perf_counter() - begun))
    return max(rates)
