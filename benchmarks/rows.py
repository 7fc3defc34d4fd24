"""Rows for the benchmarks: instruction pairs of ours, of very different lengths."""

from __future__ import annotations

import json
import random
from pathlib import Path

SEED = 42
_WORDS = (
    "river stone lantern copper engine letter window garden market bridge signal harvest winter paper thunder "
    "captain orchard silver mirror valley compass needle basket feather harbour island ladder meadow pepper"
)


def write_rows(count: int, path: Path, *, words: int | None = None, shared: int = 0) -> None:
    """Writes {prompt, completion} pairs: the first half of some words is to be said again, numbered.

    Args:
        count: of rows.
        path: a `.jsonl`.
        words: in every prompt; default: 25 to 140, which makes rows of some 75 to 410 tokens.
        shared: words that all prompts begin with.
    """
    draw, known = random.Random(SEED), _WORDS.split()
    start = "".join(f"{word} " for word in random.Random(SEED).choices(known, k=shared))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            told = draw.choices(known, k=words or min(int(draw.betavariate(1.2, 3.5) * 220) + 25, 140))
            half = " ".join(f"{at} {word}" for at, word in enumerate(told[: len(told) // 2], 1))
            row = {
                "prompt": f"{start}Number the first half of these words: {' '.join(told)}.\n",
                "completion": half,
            }
            file.write(json.dumps(row) + "\n")
