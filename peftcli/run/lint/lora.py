"""What programs beside PEFT look at in an adapter: it is LoRA, its tensors come in pairs, and how these are scaled."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from peftcli.adapters.config import PREFIX, PeftConfig
from peftcli.adapters.patterns import by_pattern
from peftcli.errors import AdapterConfigError
from peftcli.registry import METHODS, resolve
from peftcli.run.adapter import Adapter, Head
from peftcli.run.lint.finding import Finding, merging

# What the tensors of a pair are called within a layer: on linear layers and convolutions, and on embeddings.
A_NAMES = ("lora_A.weight", "lora_embedding_A")
B_NAMES = ("lora_B.weight", "lora_embedding_B")

# Starts that take a part out of the base's weights. PEFT takes it out again when it loads such an adapter; no other
# program does. (peft/tuners/lora/layer.py, 0.21.2: pissa_init, olora_init, corda_init, loftq_init, lora_ga_init)
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Fields that change what an adapter does, and their values where they do not; only PEFT reads them.
ONLY_PEFTS = {
    "arrow_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "use_bdlora": None,
    "use_qalora": False,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one layer; either may be missing."""

    module: str
    A: Head | None
    B: Head | None


def config_findings(adapter: Adapter) -> Iterator[Finding]:
    """Fields whose values are wrong whatever reads them; fields that this release does not know are left out."""
    method = str(adapter.values.get("peft_type"))
    if method not in METHODS:
        yield Finding("peft_type", f"{method!r} is no method that peftcli knows", "update peftcli")
        return
    try:
        _config(adapter)
    except AdapterConfigError as error:
        for name, message in error.fields:
            yield Finding(name, message, "correct it in adapter_config.json")


def lora_findings(adapter: Adapter, program: str) -> Iterator[Finding]:
    """Why the adapter is not one that any program beside PEFT applies right."""
    method = adapter.values["peft_type"]
    if method != "LORA":
        config: Any = _config(adapter)
        advice = "serve it with PEFT" if config.never_merges else merging(adapter.folder)
        yield Finding("peft_type", f"{program} loads LoRA adapters only, and this is {method}", advice)
        return
    start = str(adapter.values.get("init_lora_weights")).partition("_niter_")[0]
    if start in CHANGE_BASE:
        yield Finding(
            "init_lora_weights",
            f"{start} took a part out of the base's weights, which {program} loads as they are published",
            merging(adapter.folder),
        )
    pairs = list(lora_pairs(adapter))
    if not pairs:
        yield Finding("adapter_model.safetensors", "holds no pair of LoRA's factors", "get it again")
    for pair in pairs:
        yield from _pair_findings(pair)
        yield from _rank_findings(adapter, pair)


def _pair_findings(pair: Pair) -> Iterator[Finding]:
    if pair.A is None or pair.B is None:
        missing = "lora_A" if pair.A is None else "lora_B"
        yield Finding(pair.module, f"has no {missing} beside the other factor", "get the adapter again")
    elif min(len(pair.A.shape), len(pair.B.shape)) < 2 or pair.A.shape[0] != pair.B.shape[1]:
        yield Finding(
            pair.module,
            f"its factors are {pair.A.shape} and {pair.B.shape}, which have no product",
            "get it again",
        )


def _rank_findings(adapter: Adapter, pair: Pair) -> Iterator[Finding]:
    rank = rank_of(adapter, pair)
    # Parameters with experts side by side have a pair for each, in one.
    if pair.A is not None and pair.A.shape[:1] != (rank,) and not adapter.values.get("target_parameters"):
        yield Finding(
            pair.module,
            f"A is {pair.A.shape}, and adapter_config.json says rank {rank}",
            "get the adapter again",
        )


def lora_pairs(adapter: Adapter) -> Iterator[Pair]:
    """The layers that have LoRA's factors, by their names in the base."""
    found: dict[str, dict[str, Head]] = defaultdict(dict)
    for key, head in adapter.heads.items():
        for part, names in (("A", A_NAMES), ("B", B_NAMES)):
            for name in names:
                if key.endswith(f".{name}"):
                    found[key.removesuffix(f".{name}").removeprefix(PREFIX)][part] = head
    for module, both in found.items():
        yield Pair(module, both.get("A"), both.get("B"))


def scalings(adapter: Adapter) -> dict[str, tuple[float, int]]:
    """What each layer's B A was multiplied by in training, and its rank."""
    values = adapter.values
    alphas: Mapping[str, float] = values.get("alpha_pattern") or {}
    result = {}
    for pair in lora_pairs(adapter):
        alpha = by_pattern(alphas, pair.module, values.get("lora_alpha", 8))
        rank = rank_of(adapter, pair)
        result[pair.module] = (alpha / divisor(values, rank), rank)
    return result


def rank_of(adapter: Adapter, pair: Pair) -> int:
    """What the config says of a layer."""
    ranks: Mapping[str, int] = adapter.values.get("rank_pattern") or {}
    rank: int = by_pattern(ranks, pair.module, adapter.values.get("r", 8))
    return rank


def divisor(values: Mapping[str, Any], rank: int) -> float:
    """What alpha is divided by."""
    return math.sqrt(rank) if values.get("use_rslora") else rank


def _config(adapter: Adapter) -> PeftConfig:
    """The config without what this release does not know, and without starts, which matter in training only."""
    kind: type[PeftConfig] = resolve(METHODS, str(adapter.values["peft_type"]), what="peft_type")
    known = {item.name for item in fields(kind)} - {"init_lora_weights"}
    with warnings.catch_warnings(action="ignore"):
        return kind(**{name: value for name, value in adapter.values.items() if name in known})
