"""Kills a run again and again and resumes it: `python -m tests.run.killer FOLDER KILLS SEED [PROCESSES]`.

FOLDER holds recipe.yaml. Everything is imported once; every attempt is a fork, so that hundreds of them take minutes.
Half of the kills come at a random moment, the others while a checkpoint is being written. Prints how many there were
of each as JSON. A run of several processes, which talk over gloo, is killed as a whole, as when its machine dies.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import peftcli.run.train  # noqa: F401  (what every attempt needs)
from peftcli.cli.app import run

PROCESSES = int(sys.argv[4]) if len(sys.argv) > 4 else 1


def attempt(folder: Path, *arguments: str) -> list[int]:
    """Forks the processes of a run, in a folder of its own choice; their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [_process(folder, arguments, rank, port) for rank in range(PROCESSES)]


def _process(folder: Path, arguments: tuple[str, ...], rank: int, port: str) -> int:
    child = os.fork()
    if child:
        return child
    if PROCESSES > 1:
        # What a launcher says.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os._exit(run(["train", "recipe.yaml", *arguments]))


def ended(children: list[int], *, wait: bool = False) -> int | None:
    """The exit status of an attempt, None while it goes on; of several processes that of the first that fails."""
    statuses = []
    for child in list(children):
        number, status = os.waitpid(child, 0 if wait else os.WNOHANG)
        if number:
            children.remove(child)
            statuses.append(os.waitstatus_to_exitcode(status))
    _STATUSES.setdefault(id(children), []).extend(statuses)
    if children:
        return None
    return next((status for status in _STATUSES.pop(id(children)) if status), 0)


_STATUSES: dict[int, list[int]] = {}


def writes(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(output.glob(".checkpoint-*.partial"))


def main() -> None:
    """Runs the recipe to its end again and again, in out-1, out-2 …, until there were so many kills."""
    folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    # The first one is slower, and tells nothing about the others' time.
    for name in ("warm", "straight"):
        begun = time.monotonic()
        assert ended(attempt(folder, "--set", f"training.output_dir={name}"), wait=True) == 0
    whole = time.monotonic() - begun
    moments = iter(lambda: draw.uniform(0.1, 0.8) * whole, None)
    count = {"random": 0, "saving": 0}
    rounds = 0
    while sum(count.values()) < kills:
        rounds += 1
        until_it_ends(folder, f"out-{rounds}", count, kills, moments)
    print(json.dumps(count))


def until_it_ends(
    folder: Path, name: str, count: dict[str, int], kills: int, moments: Iterator[float]
) -> None:
    """One run, killed and resumed until it ends by itself; `moments` are seconds until a kill."""
    status = None
    while status is None:
        children = attempt(folder, "--set", f"training.output_dir={name}", "--resume")
        kind = "saving" if count["saving"] < count["random"] else "random"
        moment = time.monotonic() + next(moments)
        while (status := ended(children)) is None:
            strike = writes(folder / name) if kind == "saving" else time.monotonic() > moment
            if strike and sum(count.values()) < kills:
                time.sleep(next(moments) / 1000)
                for each in children:
                    os.kill(each, signal.SIGKILL)
                status = ended(children, wait=True)
                if status == -signal.SIGKILL:
                    count[kind] += 1
                    status = None
                break
            time.sleep(0.0005)
        if status not in {None, 0}:
            sys.exit(f"an attempt ended with status {status}:\n{(folder / 'log').read_text()[-3000:]}")


if __name__ == "__main__":
    main()
