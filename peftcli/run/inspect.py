"""`peftcli inspect`: what an adapter is, by its own files.

Norms are those of what the adapter adds to each layer's weight, where its method's tensors alone say it; elsewhere
those of the layer's tensors. Both are worked out in float64, a layer at a time.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftcli.adapters.config import PREFIX, PeftConfig
from peftcli.adapters.method import Method
from peftcli.adapters.updates import Update
from peftcli.errors import AdapterError
from peftcli.registry import ENGINES, resolve
from peftcli.run.adapter import Adapter, is_finite, read_adapter
from peftcli.run.answers import InspectAnswer, LayerAnswer

if TYPE_CHECKING:
    from torch import Tensor

# Layers with the largest norms, and with the smallest, that a person is shown.
SHOWN = 3
# Numbers that are multiplied at once.
PIECE = 2**22
# What may stand beside an adapter's two files, and what it is.
BESIDE = {
    "tokenizer": "tokenizer*.json",
    "processor": "*processor_config.json",
    "recipe.lock.yaml": "recipe.lock.yaml",
    "metrics.jsonl": "metrics.jsonl",
    "README.md": "README.md",
    "checkpoints": "checkpoint-*",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the base with what the adapter has for it.

    Attributes:
        name: in the base.
        shape: of its weight as a matrix (outputs, inputs); None where the adapter's tensors do not say it.
        rank: of the update; None where it has none.
        norm: Frobenius, of the update, or of the tensors; not finite where a tensor is not.
        is_update: which of both.
    """

    name: str
    shape: tuple[int, int] | None
    rank: int | None
    norm: float
    is_update: bool

    def as_dict(self) -> LayerAnswer:
        """For `--json`, in which there are no infinities."""
        norm = self.norm if math.isfinite(self.norm) else None
        of = "update" if self.is_update else "tensors"
        return {"name": self.name, "shape": self.shape, "rank": self.rank, "norm": norm, "norm_of": of}


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that is found out about one adapter."""

    adapter: Adapter
    config: PeftConfig
    layers: list[Layer]
    whole: list[str]
    not_finite: list[str]
    beside: dict[str, int]

    @property
    def parameters(self) -> int:
        """Numbers in its file."""
        return sum(head.numel for head in self.adapter.heads.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Numbers of each type, most first."""
        counts: Counter[str] = Counter()
        for head in self.adapter.heads.values():
            counts[head.dtype] += head.numel
        return dict(counts.most_common())

    @property
    def ranks(self) -> dict[int, int]:
        """Layers of each rank."""
        return dict(sorted(Counter(layer.rank for layer in self.layers if layer.rank is not None).items()))

    @property
    def targets(self) -> dict[str, int]:
        """Layers of each last name."""
        return dict(sorted(Counter(layer.name.rpartition(".")[2] for layer in self.layers).items()))

    @property
    def is_update(self) -> bool:
        """Whether the norms are those of updates, all of them."""
        return all(layer.is_update for layer in self.layers)

    @property
    def norm(self) -> float:
        """Of all layers together."""
        return math.hypot(*(layer.norm for layer in self.layers))

    def settings(self) -> dict[str, Any]:
        """The fields of the config that are not at their default, but for those that every adapter has."""
        common = {item.name for item in fields(PeftConfig)} | {"target_modules"}
        default = type(self.config)
        values = self.config.to_dict()
        return {
            item.name: values[item.name]
            for item in fields(default)
            if item.name not in common and values[item.name] != _default(item)
        }

    def lines(self) -> list[str]:
        """For a person."""
        config = self.config
        settings = ", ".join(f"{name} {shown(value)}" for name, value in self.settings().items())
        counts = f"{self.parameters:,} numbers in {len(self.adapter.heads):,} tensors"
        return [
            f"{self.adapter.folder}: {config.peft_type}"
            + (f" for {config.task_type}" if config.task_type else ""),
            f"  base      {config.base_model_name_or_path or 'not named'}",
            f"  settings  {settings or 'all at their defaults'}",
            *([f"  targets   {_counted(self.targets)}"] if self.layers else []),
            *([f"  rank      {_ranks(self.ranks)}"] if self.ranks else []),
            f"  size      {counts} of {', '.join(self.dtypes)}; {_bytes(self.adapter.size)}",
            *([f"  whole     {_listed(self.whole)}"] if self.whole else []),
            *self._norm_lines(),
            f"  values    {_listed(self.not_finite) + ': not finite' if self.not_finite else 'all finite'}",
            f"  beside    {_counted(self.beside, once=True) or 'nothing'}",
        ]

    def _norm_lines(self) -> list[str]:
        if not self.layers:
            return []
        ordered = sorted(self.layers, key=lambda layer: -layer.norm)
        chosen = ordered if len(ordered) <= 2 * SHOWN else [*ordered[:SHOWN], None, *ordered[-SHOWN:]]
        of = "update" if self.is_update else "tensors"
        return [
            f"  {of:<8}  norm {self.norm:.4g} over {len(self.layers):,} layers",
            *(f"    {layer.norm:<10.4g}{layer.name}" if layer else "    …" for layer in chosen),
        ]

    def as_dict(self) -> InspectAnswer:
        """For `--json`."""
        config = self.config
        return {
            "folder": str(self.adapter.folder),
            "method": config.peft_type,
            "task_type": config.task_type,
            "base_model": config.base_model_name_or_path,
            "revision": config.revision,
            "peft_version": config.peft_version,
            "settings": self.settings(),
            "target_modules": self.adapter.values.get("target_modules"),
            "targets": self.targets,
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "tensors": len(self.adapter.heads),
            "parameters": self.parameters,
            "bytes": self.adapter.size,
            "dtypes": self.dtypes,
            "saved_whole": self.whole,
            "norm": self.norm if math.isfinite(self.norm) else None,
            "layers": [layer.as_dict() for layer in self.layers],
            "not_finite": self.not_finite,
            "beside": self.beside,
        }

    def enforce(self) -> None:
        """Ends an inspection that found the adapter broken.

        Raises:
            AdapterError: naming a tensor that is not finite.
        """
        if self.not_finite:
            more = f" (and {len(self.not_finite) - 1} more)" if len(self.not_finite) > 1 else ""
            raise AdapterError(
                f"{self.not_finite[0]}{more} holds values that are not finite; the adapter is broken",
                where=str(self.adapter.folder),
            )


def shown(value: Any) -> str:
    """A value as JSON has it, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _counted(counts: Mapping[str, int], *, once: bool = False) -> str:
    """`q_proj ×30, v_proj ×30`; with `once`, what is there once has no number."""
    return ", ".join(
        name if once and count == 1 else f"{name} ×{count}" for name, count in list(counts.items())[:12]
    ) + (", …" if len(counts) > 12 else "")


def _ranks(ranks: Mapping[int, int]) -> str:
    return (
        str(next(iter(ranks))) if len(ranks) == 1 else _counted({str(rank): n for rank, n in ranks.items()})
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING


def inspect(folder: Path) -> Inspection:
    """What the adapter in a folder is.

    Raises:
        ModelError: there is none, or its files are broken.
    """
    adapter = read_adapter(folder)
    config = adapter.config()
    layers, whole, not_finite = [], [], []
    with adapter.tensors() as read:
        for part in parts(adapter, config):
            tensors = {inner: read(key) for inner, key in part.keys.items()}
            not_finite += [part.keys[inner] for inner, tensor in tensors.items() if not is_finite(tensor)]
            if part.is_layer:
                layers.append(_layer(part, tensors, config))
            else:
                whole.append(part.name)
    beside = {what: len(list(folder.glob(pattern))) for what, pattern in BESIDE.items()}
    return Inspection(
        adapter, config, layers, whole, not_finite, {what: count for what, count in beside.items() if count}
    )


@dataclass(frozen=True, slots=True)
class Part:
    """What an adapter's file has for one layer, or a tensor that is for none: saved whole, or shared by layers.

    `keys` are the file's, by what they are within the layer.
    """

    name: str
    keys: dict[str, str]
    is_layer: bool


def parts(adapter: Adapter, config: PeftConfig) -> Iterator[Part]:
    """The layers that the adapter's method is on, in the order of their names; then all else."""
    start = getattr(_engine(config), "prefix", None)
    layers: dict[str, dict[str, str]] = {}
    others = []
    for key in adapter.heads:
        path = key.removeprefix(PREFIX).split(".")
        at = next((at for at, step in enumerate(path) if start and step.startswith(start)), None)
        if at and key.startswith(PREFIX):
            layers.setdefault(".".join(path[:at]), {})[".".join(path[at:])] = key
        else:
            others.append(key)
    for name in sorted(layers, key=_natural):
        yield Part(name, layers[name], is_layer=True)
    for key in others:
        yield Part(key.removeprefix(PREFIX), {key: key}, is_layer=False)


def update_of(part: Part, tensors: Mapping[str, Tensor], config: PeftConfig) -> Update | None:
    """What the adapter adds to a layer's weight, where its tensors alone say it.

    Raises:
        AdapterError: where they do not fit together.
    """
    engine = _engine(config)
    if not part.is_layer or not isinstance(engine, Method):
        return None
    wide = {inner: tensor.to(torch.float64) for inner, tensor in tensors.items()}
    try:
        return engine.update(wide, config, part.name)
    except (RuntimeError, LookupError, ValueError) as error:  # what products of wrong shapes raise
        raise AdapterError(f"{part.name}: the tensors do not fit together; the adapter is broken") from error


def _engine(config: PeftConfig) -> Any:
    return resolve(ENGINES, str(config.peft_type), what="peft_type")()


def _layer(part: Part, tensors: Mapping[str, Tensor], config: PeftConfig) -> Layer:
    update = update_of(part, tensors, config)
    square = update.inner(update) if update is not None else None
    if update is None or square is None:
        return Layer(part.name, None, None, root(inner_of(tensors, tensors) or 0.0), is_update=False)
    return Layer(part.name, update.shape, update.rank, root(square), is_update=True)


def inner_of(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """The sum of the products of the numbers in both; None where these are not for the same places."""
    shapes = [{key: tensor.shape for key, tensor in tensors.items()} for tensors in (one, other)]
    if shapes[0] != shapes[1]:
        return None
    indices = [key for key in one if not one[key].is_floating_point()]
    if any(not torch.equal(one[key], other[key]) for key in indices):
        return None
    return math.fsum(_dot(one[key], other[key]) for key in one if key not in indices)


def _dot(one: Tensor, other: Tensor) -> float:
    """In float64, without a copy of either as a whole: there may be a head of gigabytes."""
    pieces = zip(torch.split(one.flatten(), PIECE), torch.split(other.flatten(), PIECE), strict=True)
    return math.fsum(float((x.to(torch.float64) * y.to(torch.float64)).sum()) for x, y in pieces)


def root(square: float) -> float:
    """Rounding may leave a sum of squares a little below zero."""
    return square if math.isnan(square) else math.sqrt(max(square, 0.0))


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 comes before layer 10."""
    return [(0, f"{step:>12}") if step.isdecimal() else (1, step) for step in name.split(".")]
