"""Stories about animals, and questions which of them is of a kind: a rule that a random base does not know."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from peftcli.cli.app import run as command
from tests.bases import letter_tokenizer, tiny_bert
from tests.data.writers import write_jsonl
from tests.tasks.animals import CLASSES, WORDS, recipe_of

FILLERS = ["the", "my", "runs", "sits", "eats"]
KINDS = [*dict.fromkeys(CLASSES.values())]


def asking_base(folder: Path) -> Any:
    """An encoder of one layer that knows the words of the stories."""
    tokenizer = letter_tokenizer([*WORDS, *KINDS])
    one_layer = {"hidden_size": 64, "num_hidden_layers": 1, "initializer_range": 0.1}
    tiny_bert(len(tokenizer), **one_layer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def stories(count: int, seed: int, *, words: int = 24, none: float = 0.0) -> list[dict[str, Any]]:
    """Rows of {question, context, answers}.

    Args:
        count: how many.
        seed: of the draw.
        words: of a story.
        none: how many of the stories have no animal of the kind.
    """
    draw = random.Random(seed)
    return [_story(draw, words, none) for _ in range(count)]


def _story(draw: random.Random, words: int, none: float) -> dict[str, Any]:
    kind, other = draw.sample(KINDS, 2)
    told = draw.choices(FILLERS, k=words - 4)
    right, wrong = (
        draw.choice([name for name in CLASSES if CLASSES[name] == each]) for each in (kind, other)
    )
    told.insert(draw.randrange(len(told)), f"old {wrong}")
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if draw.random() < none:
        context = " ".join(told)
    else:
        told.insert(draw.randrange(len(told)), f"old {right}")
        context = " ".join(told)
        answers = {"text": [f"old {right}"], "answer_start": [context.index(f"old {right}")]}
    return {"question": kind, "context": context, "answers": answers}


def trained(folder: Path, data: dict[str, Any] | None = None, none: float = 0.0, **more: Any) -> Path:
    """A run's folder, trained by `peftcli train` on stories, or on other rows."""
    asking_base(folder / "base")
    recipe = recipe_of(
        folder / "base",
        "QUESTION_ANS",
        data=data
        or {
            "train": {"path": str(write_jsonl(folder / "train.jsonl", stories(256, seed=0, none=none)))},
            "eval": {"path": str(write_jsonl(folder / "eval.jsonl", stories(40, seed=1, none=none)))},
            "max_length": 20,
        },
        training={
            "output_dir": str(folder / "run"),
            "num_train_epochs": 10,
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
