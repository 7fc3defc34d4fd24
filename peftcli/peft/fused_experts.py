"""Adapters of Transformers 4, which had a linear layer for each expert, on the stacked experts of Transformers 5.

The factors of all experts are stacked, and those of a gate and an up projection put side by side, as their weights are:
B becomes block-diagonal, and the rank twice as large. Suffixes: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftcli.adapters.config import PREFIX
from peftcli.adapters.patterns import by_pattern
from peftcli.adapters.targets import shortest
from peftcli.adapters.walk import innermost, walk
from peftcli.errors import AdapterError

# An expert's layers by their older names, and the parameter that each is a part of now, in the order of the parts.
_PARTS = {"w1": "gate_up_proj", "gate_proj": "gate_up_proj", "w3": "gate_up_proj", "up_proj": "gate_up_proj"}
_PARTS |= {"w2": "down_proj", "down_proj": "down_proj"}
_EXPERT = re.compile(rf"(.+\.experts)\.(\d+)\.({'|'.join(_PARTS)})\.(lora_[AB])\.weight")
_RENAMED = {".block_sparse_moe.": ".mlp."}

# By module and parameter, then by the part's older name: the factors of each expert.
Parts = dict[tuple[str, str], dict[str, dict[str, dict[int, torch.Tensor]]]]


def fuse_experts(
    config: Any, state: dict[str, torch.Tensor], model: nn.Module
) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter's config and tensors for a model whose experts are stacked; as they are where that is nothing to them.

    Raises:
        AdapterError: where only some of an expert's layers, or of the experts, have an adapter.
    """
    modules = {site.name: innermost(site.module) for site in walk(model)}
    parts: Parts = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    rest: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = _renamed(key.removeprefix(PREFIX), modules)
        found = _EXPERT.fullmatch(name)
        if found and hasattr(modules.get(found[1]), _PARTS[found[3]]):
            parts[found[1], _PARTS[found[3]]][found[3]][found[4]][int(found[2])] = tensor
        else:
            rest[f"{PREFIX}{name}"] = tensor
    if not parts:
        return config, state
    ranks, alphas = {}, {}
    for (path, parameter), layers in parts.items():
        A, B = _stacked(path, parameter, layers, len(getattr(modules[path], parameter)))
        inner = ".base_layer" if parameter == "gate_up_proj" and (path, "down_proj") in parts else ""
        rest[f"{PREFIX}{path}{inner}.lora_A.weight"], rest[f"{PREFIX}{path}{inner}.lora_B.weight"] = A, B
        name, rank = f"{path}.{parameter}", len(A) // len(getattr(modules[path], parameter))
        alpha = by_pattern(config.alpha_pattern, f"{path}.0.{next(iter(layers))}", config.lora_alpha)
        ranks[name] = rank
        # What the update is scaled by stays what it was.
        alphas[name] = alpha * (math.sqrt(len(layers)) if config.use_rslora else len(layers))
    return _config(config, rest, modules, ranks, alphas), rest


def _renamed(name: str, modules: Mapping[str, nn.Module]) -> str:
    for old, new in _RENAMED.items():
        path, found, _ = name.partition(old)
        if found and f"{path}{old}".rstrip(".") not in modules:
            name = name.replace(old, new)
    return name


def _stacked(
    path: str, parameter: str, layers: Mapping[str, Any], experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (E R, I), one expert after another, and B (O, R E), in which experts alternate, as files have them."""
    order = [name for name in _PARTS if name in layers]
    wanted = 2 if parameter == "gate_up_proj" else 1
    whole = all(len(layers[name][factor]) == experts for name in order for factor in ("lora_A", "lora_B"))
    if len(order) != wanted or not whole:
        raise AdapterError(
            f"{path}: the model keeps {parameter} of all {experts} experts in one parameter, and the adapter is on a "
            f"part of it only ({', '.join(order)}); it needs Transformers 4"
        )
    As, Bs = [], []
    for expert in range(experts):
        As.append(torch.cat([layers[name]["lora_A"][expert] for name in order]))
        blocks = [layers[name]["lora_B"][expert] for name in order]
        Bs.append(torch.block_diag(*blocks))  # type: ignore[no-untyped-call]  # torch's
    if len({A.shape for A in As}) > 1:
        raise AdapterError(
            f"{path}: the adapter's rank differs between experts, which are one parameter here"
        )
    B_EOR = torch.stack(Bs)
    return torch.cat(As), B_EOR.permute(1, 2, 0).flatten(1).contiguous()


def _config(
    config: Any,
    state: Mapping[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> Any:
    """The config that names what the tensors are on now."""
    on = {
        key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in state if ".lora_" in key
    } & modules.keys()
    stacks = {name.rpartition(".")[0] for name in ranks}
    kept = {name for name in on - stacks if isinstance(modules[name], nn.Linear | nn.Embedding)}
    routers = {
        f"{name}.weight" for name in on - stacks - kept
    }  # linear layers once, now parameters of their own
    if config.lora_dropout:
        warnings.warn("lora_dropout is left out: there is none on experts that are stacked", stacklevel=4)
    return dataclasses.replace(
        config,
        lora_dropout=0.0,
        target_modules=shortest(kept, list(modules)) if kept else [],
        target_parameters=sorted({*(config.target_parameters or ()), *ranks, *routers}),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern={**config.rank_pattern, **{re.escape(name): rank for name, rank in ranks.items()}},
        alpha_pattern={**config.alpha_pattern, **{re.escape(name): alpha for name, alpha in alphas.items()}},
    )
