"""`peftcli inspect A B`: where two adapters differ: fields, layers, and what they add to the layers of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftcli.run.answers import DifferenceAnswer, LayerDifferenceAnswer
from peftcli.run.inspect import SHOWN, Inspection, Part, inner_of, parts, root, shown, update_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far two adapters are apart on a layer.

    Attributes:
        name: of the layer.
        norms: of both.
        distance: the norm of the difference; None where the two cannot be compared.
        inner: the sum of the products of their entries; None likewise.
    """

    name: str
    norms: tuple[float, float]
    distance: float | None
    inner: float | None

    @property
    def cosine(self) -> float | None:
        """Of the angle between them; None where one is zero."""
        size = self.norms[0] * self.norms[1]
        return None if self.inner is None or not size else max(-1.0, min(1.0, self.inner / size))

    def as_dict(self) -> LayerDifferenceAnswer:
        """For `--json`."""
        return {
            "name": self.name,
            "norms": [_finite(norm) for norm in self.norms],
            "distance": _finite(self.distance),
            "cosine": _finite(self.cosine),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Two adapters side by side."""

    one: Inspection
    other: Inspection
    fields: dict[str, tuple[Any, Any]]
    only: tuple[list[str], list[str]]
    layers: list[LayerDifference]

    @property
    def distance(self) -> float:
        """Over all layers that can be compared."""
        return math.hypot(*(layer.distance for layer in self.layers if layer.distance is not None))

    @property
    def cosine(self) -> float | None:
        """Over the same layers."""
        compared = [layer for layer in self.layers if layer.inner is not None]
        sizes = [math.hypot(*(layer.norms[at] for layer in compared)) for at in (0, 1)]
        total = sum(layer.inner for layer in compared if layer.inner is not None)
        return total / (sizes[0] * sizes[1]) if sizes[0] * sizes[1] else None

    @property
    def is_same(self) -> bool:
        """Whether both say the same, and do the same to every layer."""
        return not self.fields and not any(self.only) and all(layer.distance == 0 for layer in self.layers)

    def lines(self) -> list[str]:
        """For a person."""
        one, other = (str(each.adapter.folder) for each in (self.one, self.other))
        cosine = "" if self.cosine is None else f", cosine {self.cosine:.4f}"
        compared = [layer for layer in self.layers if layer.distance is not None]
        ordered = sorted(compared, key=lambda layer: -(layer.distance or 0))
        lines = [
            f"{one} and {other}" + (": the same" if self.is_same else ""),
            *(
                f"  config    {name}: {shown(was)}, other {shown(now)}"
                for name, (was, now) in self.fields.items()
            ),
            f"  norm      {self.one.norm:.4g}, other {self.other.norm:.4g}",
            f"  layers    {len(self.layers):,} in both",
        ]
        for folder, names in ((one, self.only[0]), (other, self.only[1])):
            if names:
                lines.append(f"  only in   {folder}: {len(names):,} (first: {names[0]})")
        if compared:
            lines.append(f"  distance  {self.distance:.4g} in all{cosine}")
            lines += [f"    {layer.distance:<10.4g}{layer.name}" for layer in ordered[: 2 * SHOWN]]
        if left := len(self.layers) - len(compared):
            lines.append(f"  not alike {left:,} layers have other shapes, and cannot be compared")
        return lines

    def as_dict(self) -> DifferenceAnswer:
        """For `--json`."""
        return {
            "one": self.one.as_dict(),
            "other": self.other.as_dict(),
            "same": self.is_same,
            "fields": {name: {"one": both[0], "other": both[1]} for name, both in self.fields.items()},
            "only_in_one": self.only[0],
            "only_in_other": self.only[1],
            "distance": _finite(self.distance),
            "cosine": _finite(self.cosine),
            "layers": [layer.as_dict() for layer in self.layers],
        }


def compare(one: Inspection, other: Inspection) -> Difference:
    """The difference of two adapters that were looked at.

    Raises:
        AdapterError: a file cannot be read any more.
    """
    here = {part.name: part for part in parts(one.adapter, one.config)}
    there = {part.name: part for part in parts(other.adapter, other.config)}
    only = [name for name in here if name not in there], [name for name in there if name not in here]
    layers = []
    with one.adapter.tensors() as read_one, other.adapter.tensors() as read_other:
        for name in (name for name in here if name in there):
            mine = {inner: read_one(key) for inner, key in here[name].keys.items()}
            theirs = {inner: read_other(key) for inner, key in there[name].keys.items()}
            layers.append(_layer(here[name], (mine, one), (theirs, other)))
    return Difference(one, other, _fields(one, other), only, layers)


def _fields(one: Inspection, other: Inspection) -> dict[str, tuple[Any, Any]]:
    """Fields of adapter_config.json that differ, as they are there or by default."""
    mine, theirs = one.config.to_dict(), other.config.to_dict()
    names = sorted(mine.keys() | theirs.keys())
    return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


Side = tuple[Mapping[str, "Tensor"], Inspection]


def _layer(part: Part, one: Side, other: Side) -> LayerDifference:
    """By what both add to the weight; where that is not known of both, by their tensors."""
    mine, theirs = (update_of(part, tensors, side.config) for tensors, side in (one, other))
    squares: tuple[float | None, float | None] = (None, None)
    inner = None
    if mine is not None and theirs is not None:
        squares, inner = (mine.inner(mine), theirs.inner(theirs)), mine.inner(theirs)
    if None in squares:
        squares = inner_of(one[0], one[0]), inner_of(other[0], other[0])
        inner = inner_of(one[0], other[0])
    first, second = (square or 0.0 for square in squares)
    # Of equal adapters these are the same numbers, so that their distance is zero.
    distance = None if inner is None else root(first + second - 2 * inner)
    return LayerDifference(part.name, (root(first), root(second)), distance, inner)


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None
