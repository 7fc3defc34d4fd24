"""vLLM: `vllm serve --enable-lora`.

What it takes is in its source: `vllm/lora/peft_helper.py` (fields), `vllm/lora/lora_model.py` at 0306474e and
`vllm/lora/utils.py` (keys), `vllm/lora/lora_weights.py` (scaling), and the ranks in
https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/ (MaxLoRARanks).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

from peftcli.run.adapter import Adapter
from peftcli.run.lint.base import base_findings, servable
from peftcli.run.lint.finding import Finding, Target, merging
from peftcli.run.lint.lora import A_NAMES, B_NAMES, ONLY_PEFTS, divisor, lora_findings, lora_pairs, scalings

# MaxLoRARanks: the values of --max-lora-rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# PEFTHelper's fields without a default.
REQUIRED = ("r", "lora_alpha", "target_modules")
# Weights beside the pairs that it passes over: `is_base_embedding_weights`.
PASSED_OVER = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
# PEFTHelper drops what it does not know.
DROPPED = {"alora_invocation_tokens": None, **ONLY_PEFTS}


def findings(adapter: Adapter) -> Iterator[Finding]:
    """What vLLM refuses, and what it would get wrong without a word."""
    values = adapter.values
    other = list(lora_findings(adapter, "vLLM"))
    yield from other
    if values["peft_type"] != "LORA":
        return
    merge = merging(adapter.folder)
    if values.get("alora_invocation_tokens"):
        merge = "serve it with PEFT"  # it cannot be merged
    for name in REQUIRED:
        if name not in values:
            yield Finding(name, "is missing, and vLLM needs it", "add it to adapter_config.json")
    if values.get("use_dora"):
        yield Finding("use_dora", "vLLM does not support DoRA", merge)
    if values.get("bias", "none") != "none":
        yield Finding("bias", "vLLM does not support trained biases", merge)
    if values.get("modules_to_save"):
        yield Finding("modules_to_save", "vLLM supports only null", merge)
    for name, unused in DROPPED.items():
        if name in values and values[name] != unused:
            yield Finding(name, "vLLM ignores it, and would answer otherwise than in training", merge)
    yield from _tensor_findings(adapter, merge)
    yield from base_findings(adapter, "vLLM", takes_gguf=False)


def _tensor_findings(adapter: Adapter, merge: str) -> Iterator[Finding]:
    pairs = list(lora_pairs(adapter))
    if (highest := _highest(adapter)) > RANKS[-1]:
        yield Finding("r", f"is {highest}; vLLM takes ranks up to {RANKS[-1]}", merge)
    for pair in pairs:
        if pair.A is not None and len(pair.A.shape) > 2:
            yield Finding(pair.module, "is no linear layer; vLLM adapts only those", merge)
    embeddings = [
        key for key in adapter.heads if key.endswith((A_NAMES[1], B_NAMES[1])) or ".lm_head.lora_" in key
    ]
    if embeddings:
        yield Finding(
            embeddings[0],
            "vLLM takes adapters on embeddings and heads only for models that list them in embedding_modules",
            "look whether yours does, or " + merge,
            is_error=False,
        )
    odd = [key for key in adapter.heads if not _is_known(key)]
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        yield Finding(f"{odd[0]}{more}", "is no key that vLLM knows", merge)
    yield from _scaling_findings(adapter, merge)


def _is_known(key: str) -> bool:
    """`parse_fine_tuned_lora_name`: the key's end says what it is."""
    return key.endswith((*(f".{name}" for name in (*A_NAMES, *B_NAMES)), *PASSED_OVER))


def _scaling_findings(adapter: Adapter, merge: str) -> Iterator[Finding]:
    """VLLM scales every layer by the config's own lora_alpha and r; patterns are among the fields that it drops."""
    values = adapter.values
    own: Any = values.get("lora_alpha", 8) / divisor(values, values.get("r", 8))
    wrong = [
        name
        for name, (scaling, _) in scalings(adapter).items()
        if not math.isclose(scaling, own, rel_tol=1e-6)
    ]
    if wrong:
        yield Finding(
            "alpha_pattern" if values.get("alpha_pattern") else "rank_pattern",
            f"vLLM scales every layer by {own:g}, and {len(wrong)} were trained with another factor "
            f"(first: {wrong[0]})",
            merge,
        )


def _highest(adapter: Adapter) -> int:
    """The highest rank that a layer has."""
    return max((rank for _, rank in scalings(adapter).values()), default=1)


def commands(adapter: Adapter) -> list[str]:
    """The server."""
    name = re.sub(r"[^\w.-]+", "-", adapter.folder.resolve().name).strip("-") or "adapter"
    parts = [
        "vllm", "serve", servable(adapter),
        "--enable-lora",
        "--lora-modules", f"{name}={adapter.folder.resolve()}",
        "--max-lora-rank", str(next(rank for rank in RANKS if rank >= _highest(adapter))),
    ]  # fmt: skip
    if (template := adapter.folder / "chat_template.jinja").is_file():
        parts += ["--chat-template", str(template.resolve())]
    return [shlex.join(parts)]


TARGET = Target("vLLM", findings, commands)
