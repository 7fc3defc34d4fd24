"""Words that are said as tones, and a small Whisper that has learnt to write them down."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from peftcli.recipe.schema import Recipe
from tests.data.writers import write_jsonl

# A word's tone in Hz, and what it is called in another language.
TONES = {"do": 300, "re": 500, "mi": 800, "fa": 1300, "so": 2100, "la": 3000}
OTHER = dict(zip(TONES, "cdefga", strict=True))


def recipe_of(base: Any = "base", **sections: Any) -> Recipe:
    """A recipe whose sections have what is given, too."""
    return Recipe.model_validate(
        {
            "base_model": str(base),
            "task_type": "SPEECH_SEQ_2_SEQ_LM",
            "task": sections.get("task", {"language": "en"}),
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "unused.jsonl"}} | sections.get("data", {}),
            "training": {"output_dir": "out", "disable_tqdm": True} | sections.get("training", {}),
        }
    )


def sung(words: list[str], rate: int = 16_000) -> Any:
    """(T,) samples: 0.2 s a word."""
    at = np.arange(rate // 5) / rate
    return np.concatenate(
        [0.3 * np.sin(2 * np.pi * TONES[word] * at) * np.hanning(len(at)) for word in words]
    ).astype(np.float32)


def songs(count: int, seed: int) -> list[list[str]]:
    """Two to four words each."""
    draw = random.Random(seed)
    return [draw.choices(list(TONES), k=draw.randint(2, 4)) for _ in range(count)]


def write_songs(folder: Path, name: str, count: int, seed: int, rate: int = 16_000) -> Path:
    """Rows of recordings and their words in the other language."""
    (folder / name).mkdir(parents=True)
    rows = []
    for at, words in enumerate(songs(count, seed)):
        soundfile.write(folder / name / f"{at}.wav", sung(words, rate), rate)
        rows.append({"audio": f"{name}/{at}.wav", "text": " ".join(OTHER[word] for word in words)})
    return write_jsonl(folder / f"{name}.jsonl", rows)


def taught(model: Any, task: Any, steps: int, learning_rate: float) -> Any:
    """The model after full training on songs, each to be written in the first language."""
    from peftcli.data.audio import sound
    from peftcli.data.example import Spoken

    torch.manual_seed(0)
    heard = [
        Spoken(sound({"array": sung(words), "sampling_rate": 16_000}), " ".join(words))
        for words in songs(512, seed=7)
    ]
    batch = task.collate([row for (row,) in task.encode(heard)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        some = torch.randint(len(heard), (32,))
        total, count = task.loss(model, {name: value[some] for name, value in batch.items()})
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()
