"""The adapter engine beside PEFT's: building, loading, one small forward, memory kept for the backward, merging.

    python benchmarks/engine.py [--rounds 5] [--json FILE]

Both sides run in this process, alternating, on the same random weights. Times are medians; the last column is ours
divided by PEFT's. Sizes are exact.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import peftcli

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIDES = {"peftcli": peftcli, "peft": peft}


class Result:
    """A row of the table: each side's number, and what it is."""

    def __init__(self, name: str, unit: str, numbers: dict[str, float]) -> None:
        self.name, self.unit, self.numbers = name, unit, numbers

    def line(self) -> str:
        """As Markdown."""
        ours, theirs = self.numbers["peftcli"], self.numbers["peft"]
        ratio = f"{ours / theirs:.2f}" if theirs else "-"
        return f"| {self.name} | {ours:,.4g} | {theirs:,.4g} | {self.unit} | {ratio} |"


def timed(name: str, actions: dict[str, Callable[[], Any]], rounds: int, *, repeat: int = 1) -> Result:
    """Medians of both sides, alternating; `repeat` runs are one measurement."""
    times: dict[str, list[float]] = {side: [] for side in actions}
    for _ in range(rounds):
        for side, action in actions.items():
            start = time.perf_counter()
            for _ in range(repeat):
                action()
            times[side].append((time.perf_counter() - start) / repeat)
    scale, unit = (1e6, "µs") if repeat > 1 else (1.0, "s")
    return Result(name, unit, {side: scale * statistics.median(values) for side, values in times.items()})


def llama_7b() -> nn.Module:
    """The shape of a 7B Llama, without memory: 32 layers with 7 linear modules."""
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes))


class Experts(nn.Module):
    """24 layers of 64 experts with three linear modules each, and four of attention: 4,704 in all."""

    def __init__(self) -> None:
        super().__init__()
        names = ("gate_proj", "up_proj", "down_proj")
        self.layers = nn.ModuleList()
        for _ in range(24):
            layer = nn.Module()
            layer.experts = nn.ModuleList(
                nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in names}) for _ in range(64)
            )
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                layer.add_module(name, nn.Linear(8, 8, bias=False))
            self.layers.append(layer)


def config(side: Any, **more: Any) -> Any:
    """LoRA on all linear modules."""
    return side.LoraConfig(**{"r": 8, "target_modules": LINEARS, **more})


def building(rounds: int) -> list[Result]:
    """How long it takes to put adapters on."""
    results = []
    for name, make in (("224 modules of a 7B shape on meta", llama_7b), ("4,704 modules", Experts)):
        bases = {side: iter([make() for _ in range(rounds)]) for side in SIDES}
        actions = {
            side: (lambda module=module, base=bases[side]: module.get_peft_model(next(base), config(module)))
            for side, module in SIDES.items()
        }
        results.append(timed(f"get_peft_model, {name}", actions, rounds))
    return results


def loading() -> list[Result]:
    """A second adapter and a loaded one on the 4,704 modules; once each, since PEFT takes long."""
    models = {side: module.get_peft_model(Experts(), config(module)) for side, module in SIDES.items()}
    with tempfile.TemporaryDirectory() as folder:
        models["peft"].save_pretrained(folder)
        second = {
            side: (lambda side=side: models[side].add_adapter("second", config(SIDES[side])))
            for side in SIDES
        }
        load = {side: (lambda side=side: models[side].load_adapter(folder, "third")) for side in SIDES}
        quick = {
            side: (lambda side=side: models[side].load_adapter(folder, "fourth", low_cpu_mem_usage=True))
            for side in SIDES
        }
        return [
            timed("add_adapter, a second on 4,704 modules", second, 1),
            timed("load_adapter on 4,704 modules", load, 1),
            timed("the same with low_cpu_mem_usage", quick, 1),
        ]


def forwards(rounds: int) -> list[Result]:
    """One token through one small adapted linear layer."""
    torch.manual_seed(0)
    layers = {}
    for side, module in SIDES.items():
        model = module.get_peft_model(nn.Sequential(nn.Linear(64, 64)), config(module, target_modules=["0"]))
        layers[side] = model.base_model.model[0].eval()
    x = torch.randn(1, 64)

    def run(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(x)

    actions = {side: (lambda layer=layer: run(layer)) for side, layer in layers.items()}
    return [timed("forward of one token, 64×64", actions, 4 * rounds, repeat=500)]


def kept(module: Any, **more: Any) -> float:
    """Megabytes kept for the backward by one 1024×1024 layer in bfloat16 over 512 tokens, parameters left out."""
    model = module.get_peft_model(
        nn.Sequential(nn.Linear(1024, 1024, bias=False)).bfloat16(),
        config(module, target_modules=["0"], **more),
    )
    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(512, 1024, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(x)
    del result
    return sum(seen.values()) / 1e6


def memory() -> list[Result]:
    """What the backward pass needs."""
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "dropout": {"lora_dropout": 0.1},
        "DoRA": {"use_dora": True},
    }
    return [
        Result(
            f"kept for backward, {name}", "MB", {side: kept(module, **more) for side, module in SIDES.items()}
        )
        for name, more in cases.items()
    ]


def merging() -> list[Result]:
    """How many entries of a bfloat16 weight a merge rounds wrongly, and how many a merge and unmerge changes."""
    wrong, changed = {}, {}
    for side, module in SIDES.items():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(512, 512, bias=False)).bfloat16()
        before = base[0].weight.detach().clone()
        model = module.get_peft_model(base, config(module, target_modules=["0"], init_lora_weights=False))
        layer = model.base_model.model[0]
        down, up = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        exact = (before.double() + layer.scaling["default"] * (up @ down)).bfloat16()
        model.merge_adapter(safe_merge=True)
        wrong[side] = 100 * float((layer.get_base_layer().weight != exact).double().mean())
        model.unmerge_adapter()
        changed[side] = 100 * float((layer.get_base_layer().weight != before).double().mean())
    return [
        Result("safe_merge on bf16, entries not correctly rounded", "%", wrong),
        Result("merge then unmerge on bf16, entries changed", "%", changed),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    cpu = platform.processor() or platform.machine()
    machine = f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    results = [*building(given.rounds), *loading(), *forwards(given.rounds), *memory(), *merging()]
    print(f"peftcli {peftcli.__version__} beside PEFT {peft.__version__}; {machine}\n")
    print("| what | peftcli | PEFT | | ratio |\n| --- | --- | --- | --- | --- |")
    print("\n".join(result.line() for result in results))
    if given.json is not None:
        rows = [{"what": each.name, "unit": each.unit, **each.numbers} for each in results]
        given.json.write_text(
            json.dumps({"machine": machine, "results": rows}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
