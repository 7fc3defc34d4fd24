"""Animals and their classes: rows for every kind of classification, and tiny bases that can learn the rule."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from peftcli.cli.app import run as command
from peftcli.recipe.schema import Recipe
from tests.bases import letter_tokenizer, tiny_bert
from tests.conftest import byte_tokenizer, tiny_llama
from tests.data.writers import write_jsonl

CLASSES = {
    **dict.fromkeys(("cat", "dog", "cow"), "mammal"),
    **dict.fromkeys(("owl", "hen", "emu"), "bird"),
    **dict.fromkeys(("eel", "cod", "ide"), "fish"),
}
# Of kinds of rows that are not for SEQ_CLS.
TASKS = {"tokens": "TOKEN_CLS", "similar": "FEATURE_EXTRACTION", "scored": "FEATURE_EXTRACTION"}
WORDS = [*CLASSES, "the", "my", "old", "runs", "sits", "eats"]


def recipe_of(base: Any = "base", task_type: str = "SEQ_CLS", **sections: Any) -> Recipe:
    """A recipe whose sections have what is given, too."""
    return Recipe.model_validate(
        {
            "base_model": str(base),
            "task_type": task_type,
            "task": sections.get("task", {}),
            "adapter": sections.get("adapter", {"peft_type": "LORA", "target_modules": "all-linear"}),
            "data": {"train": {"path": "unused.jsonl"}} | sections.get("data", {}),
            "training": {"output_dir": "out", "disable_tqdm": True} | sections.get("training", {}),
            "gates": sections.get("gates"),
        }
    )


def encoder_base(folder: Path) -> Any:
    tokenizer = letter_tokenizer(WORDS)
    one_layer = {"hidden_size": 64, "num_hidden_layers": 1, "initializer_range": 0.1}
    tiny_bert(len(tokenizer), **one_layer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def decoder_base(folder: Path) -> Any:
    one_layer = {"hidden_size": 64, "num_hidden_layers": 1, "initializer_range": 0.1}
    tiny_llama(**one_layer).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return byte_tokenizer()


BASES = {"encoder": encoder_base, "decoder": decoder_base}


def animals(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a rule that a random base does not know.

    Args:
        kind: single, pair, multi, regression, tokens, similar or scored.
        count: how many.
        seed: of the draw.
    """
    draw = random.Random(seed)
    return [_row(kind, draw) for _ in range(count)]


def _row(kind: str, draw: random.Random) -> dict[str, Any]:
    one, other = draw.sample([*CLASSES], 2)
    does = draw.choice(["sits", "eats"])
    if kind == "pair":
        return {"text": f"the {draw.choice(['old', 'my'])} runs", "text_pair": one, "label": CLASSES[one]}
    if kind == "multi":
        return {"text": f"{one} {other}", "label": sorted({CLASSES[one], CLASSES[other]})}
    if kind == "similar":
        return {"anchor": f"the {one} {does}", "positive": CLASSES[one]}
    if kind == "scored":
        return {
            "anchor": f"the {one}",
            "positive": f"my {other}",
            "score": float(CLASSES[one] == CLASSES[other]),
        }
    if kind == "tokens":
        first, last = CLASSES[one].upper(), CLASSES[other].upper()
        tags = ["O", f"B-{first}", f"I-{first}", "O", f"B-{last}"]
        return {"tokens": ["the", "old", one, does, other], "tags": tags}
    label: Any = CLASSES[one]
    if kind == "regression":
        label = {"mammal": 0.0, "bird": 1.0, "fish": 2.5}[label]
    return {"text": f"the {one} {does}", "label": label}


def trained(
    folder: Path, kind: str, make: Any = encoder_base, data: dict[str, Any] | None = None, **more: Any
) -> Path:
    """A run's folder, trained by `peftcli train` on rows of the rule, or on others."""
    make(folder / "base")
    recipe = recipe_of(
        folder / "base",
        TASKS.get(kind, "SEQ_CLS"),
        data=data
        or {
            "train": {"path": str(write_jsonl(folder / "train.jsonl", animals(kind, 256, seed=0)))},
            "eval": {"path": str(write_jsonl(folder / "eval.jsonl", animals(kind, 40, seed=1)))},
        },
        training={
            "output_dir": str(folder / "run"),
            "num_train_epochs": 6,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-2,
            "eval_strategy": "epoch",
            "seed": 0,
        }
        | more.pop("training", {}),
        **more,
    )
    (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    assert command(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"
