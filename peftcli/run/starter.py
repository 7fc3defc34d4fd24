"""The work of `peftcli init`: a commented recipe, and rows of ours that it trains on as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from peftcli.errors import RecipeError, did_you_mean
from peftcli.files import write_bytes
from peftcli.recipe.builtin import folder, read_built_in
from peftcli.recipe.source import to_yaml
from peftcli.recipe.tasks import OPTIONS
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

# Where rows that come with peftcli name files beside them.
_NAMED_FILE = re.compile(r'"([\w-]+/[\w.-]+)"')
# Where a built-in recipe names rows that come with it.
_SHIPPED = re.compile(r"path: recipes/([\w.-]+)")

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
    """The starter recipe's text.

    Args:
        task: the task_type.
        base: the base model; None for the starter's own.
        rows: the stem of the files of rows beside the recipe; None for rows that come with peftcli.
        output_dir: of the run.

    Raises:
        RecipeError: where there is no such task.
    """
    if task not in TASKS:
        raise RecipeError(f"--task {task}: there is no such task; {did_you_mean(task, TASKS)}")
    if OPTIONS[task].STARTER:
        return _from_built_in(OPTIONS[task].STARTER, base, rows, output_dir)
    return _TEMPLATE.format(
        task=task,
        base=_line("base_model", base or DEFAULT_BASE),
        rows=_line("path", f"{rows}.jsonl" if rows else str(folder() / SHIPPED_ROWS)),
        output=_line("output_dir", output_dir),
    )


def write_starter(path: Path, task: str, base: str | None) -> tuple[Path, list[Path]]:
    """Writes the recipe, its rows beside it as `STEM.jsonl` (several: `STEM-….jsonl`), and the files that these name.

    Returns:
        The paths of the recipe and of its rows.

    Raises:
        RecipeError: where a file exists, or the folder does not.
    """
    stem = path.with_suffix("")
    if path.suffix not in {".yaml", ".yml"}:
        raise RecipeError("name a .yaml file; the rows are written beside it as .jsonl", where=str(path))
    if not path.parent.is_dir():
        raise RecipeError(f"there is no folder {path.parent}; make it first", where=str(path))
    text = starter(task, base, stem, f"runs/{path.stem}")
    contents = _rows_of(task, stem)
    named = _named_by(contents.values(), path.parent)
    for file in (path, *contents, *named):
        if file.exists() or file.is_symlink():
            raise RecipeError(
                "exists already, and is not overwritten; choose another --output", where=str(file)
            )
    try:
        for file, content in (*named.items(), *contents.items(), (path, text.encode())):
            file.parent.mkdir(exist_ok=True)
            write_bytes(file, content)
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path, list(contents)


def _rows_of(task: str, stem: Path) -> dict[Path, bytes]:
    """The files of rows that a starter names, and what stands in them."""
    if not OPTIONS[task].STARTER:
        return {Path(f"{stem}.jsonl"): example_rows().encode()}
    names = _SHIPPED.findall(read_built_in(OPTIONS[task].STARTER))
    return {Path(f"{stem}-{name}"): (folder() / name).read_bytes() for name in names}


def _named_by(rows: Iterable[bytes], beside: Path) -> dict[Path, bytes]:
    """Files that come with peftcli and are named in rows (recordings), for a folder of the user's."""
    names = {name for content in rows for name in _NAMED_FILE.findall(content.decode())}
    return {
        beside / name: (folder() / name).read_bytes() for name in sorted(names) if (folder() / name).is_file()
    }


def _from_built_in(name: str, base: str | None, stem: Path | None, output_dir: str) -> str:
    """A built-in recipe with another base, its rows found from here, and a folder of its own."""
    text = read_built_in(name)
    if base is not None:
        text = re.sub(r"^base_model: \S+$", lambda _: _line("base_model", base), text, flags=re.MULTILINE)
    text = _SHIPPED.sub(
        lambda found: _line("path", str(folder() / found[1] if stem is None else f"{stem}-{found[1]}")), text
    )
    return re.sub(r"output_dir: \S+", lambda _: _line("output_dir", output_dir), text)


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
