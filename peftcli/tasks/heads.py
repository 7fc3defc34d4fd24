"""Heads: modules that a task puts on a base, whose weights no pretrained checkpoint brings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

# What models call their body whose class has no name for it.
_BODIES = ("backbone", "vision_model", "model", "encoder")


def head_modules(model: nn.Module, new: Iterable[str]) -> list[str]:
    """The largest modules that are new as a whole, by the shortest name that means them alone.

    Args:
        model: with all its weights.
        new: names of the weights that were not loaded.
    """
    drawn = set(new)
    heads: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{weight}" for weight, _ in module.named_parameters()]
        if name and inside and drawn.issuperset(inside) and not any(name.startswith(f"{h}.") for h in heads):
            heads.append(name)
    names = [name for name, _ in model.named_modules()]
    heads = _parted(model, heads, names)
    return [_short(head, names) for head in heads]


def _parted(model: nn.Module, heads: list[str], names: list[str]) -> list[str]:
    """The same modules; in place of one that holds another of a head's name those inside it.

    PEFT takes every module whose name ends in one of `modules_to_save`, and cannot wrap one within another.
    """
    endings = tuple(_short(head, names) for head in heads)
    for head in heads:
        module = model.get_submodule(head)
        inside = [
            f"{head}.{name}" for name, part in module.named_children() if any(True for _ in part.parameters())
        ]
        nested = any(name.startswith(f"{head}.") and name.endswith(endings) for name in names)
        if nested and inside and not any(True for _ in module.parameters(recurse=False)):
            return _parted(
                model, [each for other in heads for each in (inside if other == head else [other])], names
            )
    return heads


def outer_weights(model: Any) -> list[str]:
    """Names of the weights beside the model's body: those of its head, whether a checkpoint brings them or not."""
    children = dict(model.named_children())
    bodies = [model.base_model_prefix, *_BODIES]
    body = next((name for name in bodies if name in children), None)
    return [name for name, _ in model.named_parameters() if body is None or not name.startswith(f"{body}.")]


def _short(head: str, names: list[str]) -> str:
    """A module's last name where no other module's path ends in it."""
    last = head.rpartition(".")[2]
    return head if sum(name == last or name.endswith(f".{last}") for name in names) > 1 else last
