"""Folders as `peftcli train` leaves them, made in no time: what a report reads of them, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from peftcli.run.lock import Lock, write_lock

RECIPE: dict[str, Any] = {
    "base_model": "org/base",
    "base_model_id": None,
    "task_type": "CAUSAL_LM",
    "dtype": "auto",
    "adapter": {"peft_type": "LORA", "r": 8},
    "data": {"train": [{"path": "rows.jsonl", "type": "chat", "weight": 1.0}], "eval": 0.1},
    "training": {
        "output_dir": "runs/a",
        "learning_rate": 0.001,
        "num_train_epochs": 2.0,
        "weight_decay": 0.0,
    },
    "gates": {"eval_loss": "< 1.2", "eval_accuracy": ">= 0.9"},
}
DATA: dict[str, Any] = {
    "format": "chat",
    "train": {
        "rows": 280,
        "tokens": 10_287,
        "trained_tokens": 1_957,
        "lengths": {"min": 32, "median": 37, "p95": 40, "max": 41},
        "packed": None,
    },
    "eval": None,
    "train_sources": [
        {
            "path": "rows.jsonl",
            "type": "chat",
            "rows": 280,
            "dropped": 3,
            "sha256": {"rows.jsonl": "13f3b7d0" * 8},
        }
    ],
    "max_length": 128,
    "warnings": ["two rows are alike"],
}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}


def records(steps: int = 8, *, low: float = 0.5) -> list[dict[str, Any]]:
    """What a run logs: a line a step, an evaluation every fourth."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = low + 4 / step
        line = {"step": step, "epoch": step / 4, "loss": loss, "learning_rate": 1e-3 * (1 - step / steps)}
        lines.append(line | {"grad_norm": 1 / step, "tokens": 100 * step, "tokens_per_second": 50.0})
        lines[-1]["peak_memory_bytes"] = 2_000_000_000 + step
        if step % 4 == 0:
            lines.append(
                {"step": step, "epoch": step / 4, "eval_loss": loss + 0.1, "eval_accuracy": step / 10}
            )
    return lines


def make_run(
    folder: Path,
    *,
    logged: Iterable[dict[str, Any]] | None = None,
    finished: bool = True,
    recipe: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Makes a run's folder.

    Args:
        folder: where.
        logged: its metrics; default: `records()`.
        finished: whether it has come to its end.
        recipe: what its recipe has instead of RECIPE's values, a level deep.
        data: its data report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resolved = deepcopy(RECIPE)
    for key, value in (recipe or {}).items():
        resolved[key] = {**resolved[key], **value} if isinstance(resolved.get(key), dict) and value else value
    base = {"name": resolved["base_model"], "fingerprint": "a" * 40}
    write_lock(folder, Lock(resolved, base, DATA if data is None else data, VERSIONS))
    text = "".join(json.dumps(record) + "\n" for record in (records() if logged is None else logged))
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        (folder / "README.md").write_text("the card")
        (folder / "adapter_model.safetensors").write_bytes(bytes(4_900_000))
    return folder


def write_answers(path: Path, answers: Iterable[tuple[dict[str, Any], str]]) -> Path:
    """A file that `peftcli generate --output` writes: rows with what was generated for them."""
    rows = [{**row, "generated_text": text, "tokens": 3, "finish_reason": "stop"} for row, text in answers]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
