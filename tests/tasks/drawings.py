"""Pictures of balls, rows of them, and recipes that teach a tiny Stable Diffusion to draw them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from peftcli.models.load import resolve_base
from peftcli.recipe.schema import Recipe
from peftcli.tasks.text_to_image import TextToImage
from tests.bases import stable_diffusion
from tests.data.writers import write_jsonl

PROMPT = "a sks ball"


def ball(at: int, color: str = "red", size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A ball on white, so far from the corner."""
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((at, at, at + 16, at + 16), fill=color)
    return picture


def write_balls(folder: Path, name: str = "balls", count: int = 4, **columns: Any) -> Path:
    """Rows of pictures, with what else they have."""
    (folder / name).mkdir(parents=True)
    rows = []
    for at in range(count):
        ball(2 * at).save(folder / name / f"{at}.png")
        rows.append({"image": f"{name}/{at}.png", **columns})
    return write_jsonl(folder / f"{name}.jsonl", rows)


def write_pipeline(folder: Path, **settings: Any) -> Path:
    """A tiny base."""
    stable_diffusion(folder, **settings)
    return folder


def sections(base: Path, **given: Any) -> dict[str, Any]:
    """A recipe whose sections have what is given, too."""
    return {
        "base_model": str(base),
        "task_type": "TEXT_TO_IMAGE",
        "task": {"instance_prompt": PROMPT} | given.get("task", {}),
        "adapter": {"peft_type": "LORA", "r": 4} | given.get("adapter", {}),
        "data": {"train": {"path": "unused.jsonl"}} | given.get("data", {}),
        "training": {"output_dir": "out", "use_cpu": True, "disable_tqdm": True} | given.get("training", {}),
    }


def recipe_of(base: Path, **given: Any) -> Recipe:
    """The same, read."""
    return Recipe.model_validate(sections(base, **given))


def task_of(base: Path, **given: Any) -> TextToImage:
    """The task of such a recipe."""
    found = resolve_base(str(base))
    processor = TextToImage.load_processor(found, say=partial(print, end=""))
    return TextToImage(recipe_of(base, **given), processor, TextToImage.load_config(found))
