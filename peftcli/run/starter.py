"""The work of `peftcli init`: a commented recipe, and rows of ours that it trains on as it stands."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from peftcli.errors import RecipeError
from peftcli.files import write_text
from peftcli.recipe.builtin import folder
from peftcli.recipe.source import to_yaml
from peftcli.registry import TASKS

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Rows that come with peftcli: what a starter on standard output trains on, as it has no file beside it.
SHIPPED_ROWS = "quickstart-train.jsonl"

_TEMPLATE = """\
# One run of peftcli. Check it with `peftcli check`, train it with `peftcli train`.
# `peftcli schema > recipe.schema.json` makes the file that the next line names, for editors.
# yaml-language-server: $schema=./recipe.schema.json

# What to start from: a Hub id, a local folder, a .gguf file, or package://IMPORT_NAME/FILE.
{base}
task_type: {task}

# The adapter, spelled as adapter_config.json spells it.
adapter:
  peft_type: LORA
  r: 8                          # the rank: more is a larger adapter that can learn more
  lora_alpha: 16                # the adapter's weight is lora_alpha / r
  lora_dropout: 0.05
  target_modules: all-linear    # or names of layers: [q_proj, v_proj]

data:
  train:
    {rows}  # put your file here
    type: instruction           # rows of {{instruction, input?, output}}; others: text, completion, chat
  eval: 0.1                     # this share of the rows is held out; or a source as above
  max_length: 256               # in tokens; a longer row is an error unless `overflow` says otherwise

# Spelled as transformers.TrainingArguments spells it.
training:
  {output}
  num_train_epochs: 3
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1    # raise it for a larger batch in the same memory
  learning_rate: 2.0e-4
  lr_scheduler_type: cosine
  warmup_steps: 0.1                 # below 1: a share of all steps
  logging_steps: 5
  eval_strategy: epoch
  save_strategy: epoch
  save_total_limit: 2
  load_best_model_at_end: true
  seed: 42
"""

_METALS = ("iron", "copper", "silver", "gold", "tin", "zinc", "nickel", "lead")
_SYMBOLS = ("Fe", "Cu", "Ag", "Au", "Sn", "Zn", "Ni", "Pb")
_QUESTIONS = (
    "What is the chemical symbol of {metal}?",
    "Give the symbol for {metal}.",
    "How do chemists write {metal}?",
    "Which symbol stands for {metal}?",
    "Write {metal} as a symbol.",
)


def starter(task: str, base: str | None, rows: Path | None = None, output_dir: str = "runs/starter") -> str:
    """The starter recipe's text; without `rows` it trains on rows that come with peftcli.

    Raises:
        RecipeError: where there is no starter for the task.
    """
    if task not in TASKS:
        raise RecipeError(f"--task {task} is not supported yet; supported: {', '.join(TASKS)}")
    return _TEMPLATE.format(
        task=task,
        base=_line("base_model", base or DEFAULT_BASE),
        rows=_line("path", str(rows or folder() / SHIPPED_ROWS)),
        output=_line("output_dir", output_dir),
    )


def write_starter(path: Path, task: str, base: str | None) -> tuple[Path, Path]:
    """Writes the recipe, and its rows as `STEM.jsonl` beside it; returns both paths.

    Raises:
        RecipeError: where either file exists, or the folder does not.
    """
    rows = path.with_suffix(".jsonl")
    if rows == path:
        raise RecipeError("name a .yaml file; the rows are written beside it as .jsonl", where=str(path))
    if not path.parent.is_dir():
        raise RecipeError(f"there is no folder {path.parent}; make it first", where=str(path))
    for file in (path, rows):
        if file.exists() or file.is_symlink():
            raise RecipeError(
                "exists already, and is not overwritten; choose another --output", where=str(file)
            )
    text = starter(task, base, rows, f"runs/{path.stem}")
    try:
        write_text(rows, example_rows())
        write_text(path, text)
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path, rows


def example_rows() -> str:
    """40 rows of JSON Lines that a small model learns in a minute: metals and their symbols."""
    symbols = dict(zip(_METALS, _SYMBOLS, strict=True))
    rows = (
        {"instruction": question.format(metal=metal), "output": symbols[metal]}
        for question, metal in product(_QUESTIONS, _METALS)
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _line(key: str, value: str) -> str:
    """`key: value`, the value quoted where YAML needs it."""
    return to_yaml({key: value}).rstrip("\n")
