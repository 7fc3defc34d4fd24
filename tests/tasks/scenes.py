"""Drawn scenes with masks, and a small SegFormer that has learnt to find something else in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from peftcli.recipe.schema import Recipe
from tests.bases import tiny_segformer
from tests.data.writers import write_jsonl

SIDE = 32
NAMES = ["ground", "disc", "square"]
NO_CLASS = 255


def recipe_of(base: Any = "base", **sections: Any) -> Recipe:
    """A recipe whose sections have what is given, too."""
    return Recipe.model_validate(
        {
            "base_model": str(base),
            "task_type": "SEMANTIC_SEG",
            "task": sections.get("task", {}),
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "unused.jsonl"}} | sections.get("data", {}),
            "training": {"output_dir": "out", "disable_tqdm": True} | sections.get("training", {}),
        }
    )


def scene(draw: np.random.Generator, height: int = SIDE, width: int = SIDE) -> tuple[Any, Any]:
    """A picture (H, W, 3) of discs and squares in like colours, and its mask (H, W)."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 220.0)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(2):
        kind, reach = int(draw.integers(1, 3)), int(draw.integers(4, 8))
        down, right = rows - draw.integers(5, height - 5), columns - draw.integers(5, width - 5)
        far = np.hypot(down, right) if kind == 1 else np.maximum(abs(down), abs(right))
        image[far <= reach] = (200, 80, 60) if kind == 1 else (150, 120, 60)
        mask[far <= reach] = kind
    return (image + draw.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8), mask


def write_scenes(
    folder: Path, name: str, count: int, seed: int, side: tuple[int, int] = (SIDE, SIDE)
) -> Path:
    """Rows of scenes and their masks, gray and with a palette in turn; a corner has no class."""
    (folder / name).mkdir(parents=True)
    draw = np.random.default_rng(seed)
    rows = []
    for at in range(count):
        image, mask = scene(draw, *side)
        mask[:3, :3] = NO_CLASS
        marked = PIL.Image.fromarray(mask)
        if at % 2:
            marked.putpalette([90, 160, 30] * 256)
        PIL.Image.fromarray(image).save(folder / name / f"{at}.png")
        marked.save(folder / name / f"{at}-mask.png")
        rows.append({"image": f"{name}/{at}.png", "mask": f"{name}/{at}-mask.png"})
    return write_jsonl(folder / f"{name}.jsonl", rows)


def write_finder(folder: Path, steps: int, **settings: Any) -> Path:
    """A SegFormer without a head, trained to tell shapes of any kind from the ground; and its processor."""
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

    config = tiny_segformer(**settings).config
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(type(config)(**{**config.to_dict(), "num_labels": 2}))
    processor = SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    draw = np.random.default_rng(5)
    scenes = [scene(draw) for _ in range(128)]
    pixels = processor([image for image, _ in scenes], return_tensors="pt")["pixel_values"]
    shapes = torch.as_tensor(np.stack([mask > 0 for _, mask in scenes])).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        some = torch.randint(len(scenes), (16,))
        model(pixel_values=pixels[some], labels=shapes[some]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.segformer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
