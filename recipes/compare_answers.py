"""Shows two files of answers side by side, and how many of each are exactly right.

    python recipes/compare_answers.py BASE.jsonl ADAPTER.jsonl

Both come from `peftcli generate --input ROWS.jsonl --output ANSWERS.jsonl` on the same rows, whose `output`
is the right answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = 6


def read(path: str) -> list[dict[str, str]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def right(row: dict[str, str]) -> bool:
    """Whether the answer is the expected one, letter by letter."""
    return row["generated_text"].strip() == row["output"]


def cell(row: dict[str, str]) -> Text:
    """The answer's first line, marked."""
    lines = row["generated_text"].strip().splitlines() or [""]
    shown = lines[0] if len(lines[0]) <= 40 else lines[0][:39] + "…"
    return Text(f"{'✓' if right(row) else '✗'} {shown}", style="green" if right(row) else "red")


def main(base_path: str, adapter_path: str) -> None:
    """Prints the table and the two rates."""
    base, adapter = read(base_path), read(adapter_path)
    table = Table(title="held-out commands, never seen in training", title_justify="left")
    for column in ("command", "expected", "without the adapter", "with the adapter"):
        table.add_column(column)
    for before, after in list(zip(base, adapter, strict=True))[:SHOWN]:
        table.add_row(Text(before["instruction"]), Text(before["output"]), cell(before), cell(after))
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for name, rows in (("without the adapter", base), ("with the adapter", adapter)):
        count = sum(map(right, rows))
        console.print(
            f"exact match {name}: {count} of {len(rows)} ({100 * count / len(rows):.0f} %)", highlight=False
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
