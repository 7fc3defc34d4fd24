"""Which layers to adapt where a config does not say: PEFT's, else the queries and values of the text's attention.

What PEFT's table does not know is found by structure, in one pass over the modules: attention is a module that holds
query and value projections, whatever their exact names, or that is called attention and holds one of them. Only
models without any attention fall back on what their mixers or blocks read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer

_BY_LAYERS: dict[str, list[str]] = {
    "q_proj v_proj": [
        "bart",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt_neo",
        "gptj",
        "llama",
        "llama4",
        "mistral",
        "mixtral",
        "opt",
        "qwen2",
        "qwen3",
        "stablelm",
    ],
    "q v": ["mt5", "t5"],
    "query value": ["bert", "electra", "layoutlm", "roberta", "xlm-roberta"],
    "query_key_value": ["RefinedWeb", "RefinedWebModel", "bloom", "chatglm", "falcon", "gpt_neox"],
    "c_attn": ["gpt2", "gpt_bigcode"],
    "q v q_proj v_proj": ["blip-2"],
    "c_proj c_attn": ["btlm"],
    "qkv_proj": ["codegen"],
    "in_proj": ["deberta"],
    "query_proj value_proj": ["deberta-v2"],
    "Wqkv": ["mpt"],
    "q_proj k_proj v_proj o_proj": ["nemotron_h"],
    "q_proj v_proj fc1 fc2": ["phi"],
    "key value receptance output": ["rwkv"],
    "r_proj k_proj v_proj o_proj key value": ["rwkv7"],
}
# model_type -> the layers that PEFT adapts by default: whoever moves here gets the same adapter.
BY_ARCHITECTURE: dict[str, list[str] | str] = {
    **{model_type: layers.split() for layers, types in _BY_LAYERS.items() for model_type in types},
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
}

# A projection by its last name: q_proj, Wqkv, to_v, query, kv_b_proj, in_proj_qkvz, W_pack, …
_QUERY = re.compile(r"(^|_)w?(q|query|qkvz?|pack)(_|$)|^c_attn$", re.IGNORECASE)
_VALUE = re.compile(r"(^|_)w?(k?v|value|qkvz?|pack)(_|$)|^c_attn$", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
# An indexer only chooses which tokens attention sees: no gradient comes through it.
_INDEXER = re.compile(r"indexer", re.IGNORECASE)
_ROUTER = re.compile(r"router|gate$|gating", re.IGNORECASE)
_NUMBERED = re.compile(r"\.\d+\.")

Named = Sequence[tuple[str, nn.Module]]


def default_targets(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> list[str] | str | None:
    """The layers that are adapted by default, as `target_modules` would name them; None where nothing fits.

    Args:
        model: the base model, with or without adapters.
        modules: all its modules under their full names, parents before children.
    """
    named = [(name, _bare(module)) for name, module in modules]
    config: Any = getattr(model, "config", None)
    known = BY_ARCHITECTURE.get(getattr(config, "model_type", ""))
    if isinstance(known, str):
        return known
    last = {_last(name) for name, _ in named}
    if known and last.intersection(known):  # a table's row may name layers of several versions of a model
        return sorted(last.intersection(known))
    classes = {"": type(model).__name__} | {name: type(module).__name__ for name, module in named}
    found = _structural(_text_part(config, named), classes, config) or _structural(named, classes, config)
    return _as_targets(found, [name for name, _ in named]) if found else None


def _structural(modules: Named, classes: dict[str, str], config: Any) -> set[str]:
    linear = [(name, module) for name, module in modules if isinstance(module, nn.Linear | Conv1D)]
    # An adapter on a convolution with groups cannot be merged.
    convolutions = [item for item in modules if isinstance(item[1], nn.Conv1d) and item[1].groups == 1]
    return (
        _projections(linear, classes)
        or _projections(convolutions, classes)
        # All that a state-space mixer reads; its other layers' weights go to kernels past any adapter.
        or {name for name, _ in linear if _last(name) == "in_proj"}
        or _inputs_of_blocks(linear, classes, config)
        or _inputs_of_blocks(convolutions, classes, config)
    )


def _projections(layers: Named, classes: dict[str, str]) -> set[str]:
    """The query and value projections among layers, and projections that hold both."""
    inside: dict[str, dict[str, str]] = defaultdict(dict)
    for name, _ in layers:
        parent, role = _place(name)
        if _QUERY.search(role) or _VALUE.search(role):
            inside[parent][role] = name
    found: set[str] = set()
    for parent, roles in inside.items():
        complete = any(map(_QUERY.search, roles)) and any(map(_VALUE.search, roles))
        if (complete or _ATTENTION.search(classes[parent])) and not _INDEXER.search(classes[parent]):
            found.update(roles.values())
    return found


def _inputs_of_blocks(layers: Named, classes: dict[str, str], config: Any) -> set[str]:
    """The layers of the repeated blocks that read the model's hidden states: neither head nor routers."""
    hidden = getattr(_text_config(config), "hidden_size", None)
    return {
        name
        for name, module in layers
        if _NUMBERED.search(name)
        and hidden in (getattr(module, "in_features", ""), getattr(module, "in_channels", ""))
        and not _ROUTER.search(_last(name))
        and not _ROUTER.search(classes[name.rpartition(".")[0]])
    }


def _text_part(config: Any, named: Named) -> Named:
    """The modules of a composite model that work on text: those whose nearest model has the text's config."""
    text = _text_config(config)
    wanted = {type(text)}
    encoder = _text_config(getattr(config, "encoder", None))
    if getattr(encoder, "vocab_size", None) is not None:  # a model of two texts: both of its halves
        wanted.add(type(encoder))
    owners: dict[str, Any] = {"": config}
    for name, module in named:
        inherited = owners[name.rpartition(".")[0]]
        owners[name] = module.config if isinstance(module, PreTrainedModel) else inherited
    return [(name, module) for name, module in named if type(owners[name]) in wanted]


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _as_targets(found: set[str], names: Sequence[str]) -> list[str] | str:
    """Endings of names where these mean exactly what was found; otherwise an expression that does."""
    for parts in (1, 2, 3):
        endings = {_ending(name, parts) for name in found}
        if all(name in found or not _ends_in(name, endings) for name in names):
            return sorted(endings)
    lasts: dict[str, set[str]] = defaultdict(set)
    for name in found:
        parent, _, last = name.rpartition(".")
        lasts[re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(parent))].add(re.escape(last))
    pattern = "|".join(rf"{parent}\.({'|'.join(sorted(lasts[parent]))})" for parent in sorted(lasts))
    if all(name in found or not re.fullmatch(pattern, name) for name in names):
        return pattern
    return "|".join(re.escape(name) for name in sorted(found))


def _ends_in(name: str, endings: set[str]) -> bool:
    return any(_ending(name, parts) in endings for parts in (1, 2, 3))


def _ending(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def _place(name: str) -> tuple[str, str]:
    """The module that a layer serves, and what the layer is called there; some stand in a shell: `q_proj.linear`."""
    parent, _, last = name.removesuffix(".linear").rpartition(".")
    return parent, last


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bare(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, AdapterLayer) else module
