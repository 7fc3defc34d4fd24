"""Nested states (an optimizer's, random generators') as JSON and safetensors: nothing that runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from peftcli.files import write_tensors


def write_tree(tree: Any, stem: Path) -> None:
    """Writes `stem`.json and `stem`.safetensors; `read_tree` gives the same tree back.

    Args:
        tree: dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
        stem: the path without a suffix.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(tree, "", tensors), ensure_ascii=False)
    stem.with_suffix(".json").write_text(text, encoding="utf-8")
    write_tensors(stem.with_suffix(".safetensors"), tensors)


def read_tree(stem: Path) -> Any:
    """What `write_tree` wrote, with all tensors on the CPU."""
    return _unpack(
        json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")),
        load_file(stem.with_suffix(".safetensors")),
    )


def _pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree with its tensors moved to `tensors`; what JSON lacks becomes one-key dictionaries."""
    if isinstance(tree, Tensor):
        # A copy: safetensors refuses tensors that share memory, as the tables of 8-bit optimizers do.
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, _pack(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [_pack(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]}
    if isinstance(tree, list):
        return [_pack(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(_unpack(value, tensors) for value in tree["tuple"])
    return {key: _unpack(value, tensors) for key, value in tree["items"]}
