"""A long run that watches itself: `python -m tests.train.soak FOLDER STEPS` prints what it took on its way, as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from peftcli.train.loop import train
from tests.train.tiny import Net, NextToken, job, rows

SAMPLES = 10


class Watched(NextToken):
    """Notes this process's resident bytes and open files every so many batches; `seen` would grow."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.batches = 0
        self.samples: list[dict[str, int]] = []

    def loss(self, model, batch, *, label_smoothing=0.0):
        self.batches += 1
        self.seen.clear()
        if self.batches % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.samples.append(
                {
                    "step": self.batches,
                    "resident": pages * os.sysconf("SC_PAGE_SIZE"),
                    "files": len([*Path("/proc/self/fd").iterdir()]),
                }
            )
        return super().loss(model, batch, label_smoothing=label_smoothing)


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    task = Watched(steps // SAMPLES)
    options = {
        "max_steps": steps,
        "logging_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": steps // 20,
        "save_strategy": "steps",
        "save_steps": steps // 20,
        "save_total_limit": 2,
        "learning_rate": 0.001,
    }
    train(job(folder, model=Net(dropout=0.1), task=task, train_rows=rows(64), **options))
    print(json.dumps(task.samples))


if __name__ == "__main__":
    main()
