"""Writes the quickstart's rows: commands said at home, and the compact routing string a hub would act on.

    python recipes/make_quickstart_data.py     # rewrites quickstart-train.jsonl and quickstart-eval.jsonl

The mapping is a rule of ours (`device@room:value`), so the base model cannot know it, and an answer is
either right or wrong. No command of the held-out rows stands among the training rows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

ROOMS = {
    "kitchen": "kit",
    "bedroom": "bed",
    "bathroom": "bath",
    "living room": "liv",
    "hallway": "hall",
    "office": "off",
    "garage": "gar",
    "nursery": "nur",
}

# device -> its code, and what can be asked of it: (how one says it, the value in the routing string).
# `{n}` is a number drawn from the range beside it.
DEVICES: dict[str, tuple[str, list[tuple[str, str]], range]] = {
    "lights": (
        "LT",
        [
            ("Turn on the {room} lights", "1"),
            ("Switch the lights off in the {room}", "0"),
            ("Dim the {room} lights to {n} percent", "{n}"),
            ("Set the lights in the {room} to {n}%", "{n}"),
        ],
        range(10, 100, 5),
    ),
    "heating": (
        "HT",
        [
            ("Heat the {room} to {n} degrees", "{n}"),
            ("Make it {n} degrees in the {room}", "{n}"),
            ("Turn the {room} heating off", "0"),
        ],
        range(15, 27),
    ),
    "blinds": (
        "BL",
        [
            ("Open the {room} blinds", "1"),
            ("Close the blinds in the {room}", "0"),
            ("Lower the {room} blinds to {n} percent", "{n}"),
        ],
        range(10, 100, 5),
    ),
    "speaker": (
        "SP",
        [
            ("Play music in the {room}", "1"),
            ("Stop the music in the {room}", "0"),
            ("Set the {room} volume to {n}", "{n}"),
        ],
        range(1, 21),
    ),
}
TRAIN_ROWS, EVAL_ROWS, SEED = 280, 40, 7


def every_command() -> list[dict[str, str]]:
    """All commands the rule covers, each with its routing string."""
    rows = []
    for code, sentences, numbers in DEVICES.values():
        for sentence, value in sentences:
            for room, short in ROOMS.items():
                for n in numbers if "{n}" in sentence else [0]:
                    command = sentence.format(room=room, n=n)
                    rows.append({"instruction": command, "output": f"{code}@{short}:{value.format(n=n)}"})
    return rows


def balanced(rows: list[dict[str, str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """`count` rows in which commands with and without a number are equally common."""
    rng.shuffle(rows)
    numbered = [row for row in rows if any(c.isdigit() for c in row["instruction"])]
    plain = [row for row in rows if row not in numbered]
    half = min(len(plain), count // 2)
    chosen = plain[:half] + numbered[: count - half]
    rng.shuffle(chosen)
    return chosen


def quickstart_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of both files, the same at every call."""
    chosen = balanced(every_command(), TRAIN_ROWS + EVAL_ROWS, random.Random(SEED))
    return {"train": chosen[EVAL_ROWS:], "eval": chosen[:EVAL_ROWS]}


def main() -> None:
    """Writes both files beside this script."""
    for name, rows in quickstart_rows().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(__file__).with_name(f"quickstart-{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
