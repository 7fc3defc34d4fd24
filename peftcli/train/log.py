"""What a run says: metrics.jsonl, the terminal, trackers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peftcli.files import write_text
from peftcli.recipe.training import Training

Record = dict[str, Any]
METRICS = "metrics.jsonl"


class Metrics:
    """metrics.jsonl: one JSON object a line, written at once; starts with the lines of a resumed run."""

    def __init__(self, output_dir: Path, history: list[Record]) -> None:
        path = output_dir / METRICS
        write_text(path, "".join(_line(record) for record in history))
        self._file: TextIO = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Record) -> None:
        """Adds a line."""
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Ends it."""
        self._file.close()


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere; nothing from processes that are not to speak."""

    def __init__(
        self, console: Console, settings: Training, *, speaks: bool, counted: str = "tokens"
    ) -> None:
        self.console = console
        self.counted = counted
        self._speaks = speaks
        bar = console.is_terminal if settings.disable_tqdm is None else not settings.disable_tqdm
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (bar and speaks and console.is_terminal),
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self, step: int, total_steps: int) -> None:
        """Shows the bar."""
        self._task = self._bar.add_task("train", total=total_steps, completed=step, facts="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """A step is made."""
        if self._task is not None:
            self._bar.update(self._task, completed=step)

    def facts(self, record: Record) -> None:
        """A log line's numbers, beside the bar."""
        if self._task is not None:
            names = ("loss", "tokens_per_second", "peak_memory_bytes")
            self._bar.update(self._task, facts=" · ".join(self.shown(name, record[name]) for name in names))

    def say(self, text: str) -> None:
        """A line."""
        if self._speaks:
            if not text.isprintable():
                # A folder's name must not steer the terminal.
                text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def shown(self, name: str, value: float) -> str:
        """A number as people read it: `loss 1.2345`, `1,234 tokens/s`, `512 MiB`."""
        if name == "tokens_per_second":
            return f"{value:,.0f} {self.counted}/s"
        if name == "peak_memory_bytes":
            return f"{value / 2**20:,.0f} MiB"
        forms = {
            "epoch": "epoch {:.2f}",
            "loss": "loss {:.4f}",
            "learning_rate": "lr {:.2e}",
            "grad_norm": "grad {:.3g}",
        }
        return forms.get(name, f"{name} {{:,}}").format(value)

    def stop(self) -> None:
        """Takes the bar away."""
        self._bar.stop()


class Reporter:
    """Sends each record everywhere."""

    def __init__(self, metrics: Metrics | None, terminal: Terminal, accelerator: Accelerator) -> None:
        self.terminal = terminal
        self._metrics = metrics
        self._accelerator = accelerator

    def trained(self, record: Record, total_steps: int) -> None:
        """A line about the training steps since the last one."""
        self._send(record)
        self.terminal.facts(record)
        names = [name for name in record if name not in {"step", "tokens"}]
        facts = " · ".join(
            self.terminal.shown(name, record[name]) for name in names if record[name] is not None
        )
        self.terminal.say(f"step {record['step']}/{total_steps} · {facts}")

    def evaluated(self, record: Record) -> None:
        """A line about an evaluation."""
        self._send(record)
        facts = " · ".join(
            f"{name} {value:.4g}" for name, value in record.items() if name.startswith("eval_")
        )
        self.terminal.say(f"evaluation at step {record['step']} · {facts}")

    def _send(self, record: Record) -> None:
        if self._metrics is not None:
            self._metrics.write(record)
        values = {name: value for name, value in record.items() if name != "step" and value is not None}
        self._accelerator.log(values, step=record["step"])

    def close(self) -> None:
        """Takes the bar away, closes the file and the trackers' runs."""
        self.terminal.stop()
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def finite(value: float) -> float | None:
    """JSON has no infinity: None stands for it (a gradient that a loss scaler skipped, a metric that is undefined)."""
    return value if math.isfinite(value) else None


def _line(record: Record) -> str:
    values = {name: finite(value) if isinstance(value, float) else value for name, value in record.items()}
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
