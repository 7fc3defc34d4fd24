"""LoRA on experts (target_parameters) beside PEFT's and beside no adapter: two layers of 64 experts, 16 tokens.

    python benchmarks/experts.py [--rounds 9] [--hidden 256] [--intermediate 256] [--rank 8] [--json FILE]

A Qwen3-MoE with random weights, each token of which goes to 8 experts, in every way in which Transformers computes
experts; `gate_up_proj` and `down_proj` are adapted. All sides run in this process, alternating, with the same weights
and the same outputs. Times are medians; the last columns divide PEFT's by ours, and ours by those without an adapter.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import peftcli

WAYS = ("eager", "batched_mm", "grouped_mm")
SIDES = ("plain", "peftcli", "peft")
TOKENS = 16


def base(given: argparse.Namespace) -> Any:
    """The model, the same every time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": given.hidden, "moe_intermediate_size": given.intermediate}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": given.hidden // 4}
    config = Qwen3MoeConfig(
        **sizes, **heads, num_hidden_layers=2, num_experts=64, num_experts_per_tok=8, intermediate_size=64
    )
    return Qwen3MoeForCausalLM(config).eval().requires_grad_(False)


def models(given: argparse.Namespace) -> dict[str, Any]:
    """Without an adapter, and with the same one of either library."""
    targets = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    built = {"plain": base(given)}
    for side, module in (("peftcli", peftcli), ("peft", peft)):
        config = module.LoraConfig(r=given.rank, init_lora_weights=False, **targets)
        built[side] = module.get_peft_model(base(given), config).eval()
    built["peft"].load_state_dict(built["peftcli"].state_dict())
    return built


def run(model: nn.Module, given: argparse.Namespace, *, backward: bool) -> torch.Tensor:
    """One call; the inputs take a gradient, as those of any layer but the first do."""
    x = torch.linspace(-1, 1, TOKENS * given.hidden).reshape(1, TOKENS, given.hidden)
    if not backward:
        with torch.no_grad():
            return model(inputs_embeds=x).logits
    model.zero_grad()
    logits = model(inputs_embeds=x.requires_grad_()).logits
    logits.square().mean().backward()
    return logits.detach()


def kept(model: nn.Module, given: argparse.Namespace) -> float:
    """Megabytes that are kept for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no memory is freed and used again before it is counted

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=torch.zeros(1, TOKENS, given.hidden, requires_grad=True))
    return sum(seen.values()) / 1e6


def timed(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Each side's median in milliseconds."""
    times: dict[str, list[float]] = {side: [] for side in actions}
    for number in range(rounds + 1):
        for side, action in actions.items():
            start = time.perf_counter()
            action()
            if number:  # the first warms up
                times[side].append(1e3 * (time.perf_counter() - start))
    return {side: statistics.median(values) for side, values in times.items()}


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    rows = []
    built = models(given)
    for way in WAYS:
        for side, model in built.items():
            (model if side == "plain" else model.get_base_model()).set_experts_implementation(way)
        ours, theirs = (run(built[side], given, backward=False) for side in ("peftcli", "peft"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for name, backward in (("forward", False), ("forward and backward", True)):
            actions = {
                side: (lambda model=model, backward=backward: run(model, given, backward=backward))
                for side, model in built.items()
            }
            rows.append({"what": f"{way}, {name}", "unit": "ms", **timed(actions, given.rounds)})
        sizes = {side: kept(model, given) for side, model in built.items()}
        rows.append({"what": f"{way}, kept for the backward", "unit": "MB", **sizes})
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    cpu = platform.processor() or platform.machine()
    machine = f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows = measure(given)
    print(f"peftcli {peftcli.__version__} beside PEFT {peft.__version__}; {machine}\n")
    print("| what | | no adapter | peftcli | PEFT | PEFT / ours | ours / none |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        plain, ours, theirs = (row[side] for side in SIDES)
        numbers = f"{plain:,.4g} | {ours:,.4g} | {theirs:,.4g} | {theirs / ours:.2f} | {ours / plain:.2f}"
        print(f"| {row['what']} | {row['unit']} | {numbers} |")
    if given.json is not None:
        content = {"machine": machine, "results": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
