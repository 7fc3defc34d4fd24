"""Scikit-learn's digits as small pictures, and a ViT that has learnt something else about them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bases import tiny_vit
from tests.data.writers import write_jsonl


@cache
def digits() -> tuple[Any, Any]:
    """(1797, 8, 8) gray values from 0 to 255, and the digit that each shows; in a random order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    return (found.images[order] * 15.9375).astype(np.uint8), found.target[order]


def write_digits(folder: Path, name: str, start: int, count: int) -> Path:
    """Rows of pictures and their digits, as names."""
    (folder / name).mkdir(parents=True)
    images, targets = digits()
    rows = []
    for at in range(start, start + count):
        Image.fromarray(images[at]).save(folder / name / f"{at}.png")
        rows.append({"image": f"{name}/{at}.png", "label": f"digit {targets[at]}"})
    return write_jsonl(folder / f"{name}.jsonl", rows)


def write_turner(folder: Path, steps: int, **settings: Any) -> Path:
    """A ViT, without a head, that was trained to tell by how many quarters digits are turned; and its processor."""
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    base = tiny_vit(**{"image_size": 8, "patch_size": 4} | settings)
    torch.manual_seed(0)
    model = ViTForImageClassification(base.config.__class__(**{**base.config.to_dict(), "num_labels": 4}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images = torch.as_tensor(digits()[0][:1200]).float() / 127.5 - 1
    draw = np.random.default_rng(1)
    for _ in range(steps):
        turns = draw.integers(0, 4, 64)
        chosen = draw.integers(0, len(images), 64)
        batch = torch.stack([images[at].rot90(int(turn)) for at, turn in zip(chosen, turns, strict=True)])
        pixels = batch[:, None].expand(-1, 3, -1, -1)
        model(pixel_values=pixels, labels=torch.as_tensor(turns)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.vit.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder
