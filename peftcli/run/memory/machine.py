"""The memory that there is: of a GPU, of this machine, or of the group of processes that this one is in."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from peftcli.train.meter import peak_memory

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Room:
    """So many bytes, and whose they are."""

    size: int
    owner: str


def room(device: torch.device) -> Room | None:
    """What a run may take on a device; None where nothing says so."""
    if device.type == "cuda":
        return Room(torch.cuda.mem_get_info(device)[1], "the GPU's memory")
    if device.type != "cpu":
        return None
    rooms = [each for each in (_machine(), _group()) if each is not None]
    return min(rooms, key=lambda each: each.size, default=None)


def resident(device: torch.device) -> int:
    """What this process takes before there is a model: Python, its libraries, the rows; nothing of a GPU."""
    if device.type != "cpu":
        return 0
    _warm_up()
    try:
        pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory(device)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _warm_up() -> None:
    """A first step, of next to nothing: kernels and threads that every training brings into memory."""
    layer = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(8, 8)).sum().backward()
    optimizer.step()


def _machine() -> Room | None:
    if sys.platform not in {"linux", "darwin"}:
        return None
    return Room(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory")


def _group() -> Room | None:
    """The least limit of the control groups that this process is in, as Docker, Slurm and Kubernetes set them."""
    limits = []
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container its own group may be mounted at the top, under no name.
        folder = top / path.lstrip("/")
        limits += [_limit(each / name) for each in (folder, *folder.parents) if each.is_relative_to(top)]
    known = [limit for limit in limits if limit is not None]
    return Room(min(known), "the limit of this process's group") if known else None


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    # "max", and in the older version a number of the size of the address space, mean that there is none.
    return int(text) if re.fullmatch(r"\d+", text) and int(text) < 2**60 else None
