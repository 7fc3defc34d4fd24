"""What a key that the recipe does not have was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from peftcli.errors import nearest
from peftcli.recipe.dialects import translation
from peftcli.recipe.schema import Data, Recipe, Source
from peftcli.recipe.source import KeyPath, dotted
from peftcli.recipe.tasks import OPTIONS
from peftcli.recipe.training import OLDER, REFUSED, Training

Hint = tuple[str, str]


def levels(adapter: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The keys of each level of a recipe, by the level's name; `adapter` has those of its method's config."""

    def keys(model: type[BaseModel]) -> tuple[str, ...]:
        return tuple(model.model_fields)

    return {
        "": keys(Recipe),
        "data": keys(Data),
        "training": (*keys(Training), *OLDER),
        "adapter": tuple(adapter),
        "data.train": keys(Source),
        "task": tuple(dict.fromkeys(name for options in OPTIONS.values() for name in options.model_fields)),
    }


def level_of(path: KeyPath) -> str:
    """Which level the key at `path` stands on; sources are alike, in train or eval, one or several."""
    parent = path[:-1]
    return "data.train" if parent[:2] in {("data", "train"), ("data", "eval")} else dotted(parent)


def unknown_key(path: KeyPath, known: dict[str, tuple[str, ...]]) -> Hint:
    """What to say of an unknown key, and the key that was meant (empty where nobody knows)."""
    name, level = str(path[-1]), level_of(path)
    here = known.get(level, ())
    if name in REFUSED and level in {"", "training"}:
        return f"TrainingArguments' `{name}` is refused: {REFUSED[name]}", ""
    for other, keys in known.items():
        if name in keys and other != level and other:
            return f"belongs under `{other}`", f"{other}.{name}"
    if name in known[""] and level:
        return "belongs at the top level", name
    translated = translation(name)
    if translated is not None:
        target, message = translated
        return message, target
    close = nearest(name, here, limit=1)
    if close:
        return f"unknown key; did you mean '{close[0]}'?", f"{level}.{close[0]}".lstrip(".")
    for other, keys in known.items():
        elsewhere = nearest(name, keys, limit=1)
        if elsewhere:
            meant = f"{other}.{elsewhere[0]}".lstrip(".")
            return f"unknown key; did you mean `{meant}`?", meant
    listed = f"the keys here are {', '.join(here)}" if len(here) <= 15 else "`peftcli schema` lists all"
    return f"unknown key; {listed}", ""
