"""Names that older releases of Transformers had, translated to today's with the meaning they had."""

from __future__ import annotations

from typing import Any

from peftcli.recipe.source import Document, kind
from peftcli.recipe.training import OLDER


def modernize(document: Document) -> None:
    """Renames older names in `training`, values included; a name given in both forms is a problem."""
    training = document.values.get("training")
    if not isinstance(training, dict):
        return
    translated = dict(training)
    for old, new in OLDER.items():
        if old not in training:
            continue
        path = ("training", old)
        value = translated.pop(old)
        if new in training:
            document.add(path, f"the older form of `{new}`, which is given too; keep `{new}`")
            continue
        try:
            translated[new] = _value(old, value)
        except ValueError as error:
            document.add(path, str(error))
            continue
        document.places["training", new] = document.where(path)
    document.values = {**document.values, "training": translated}


def _value(old: str, value: Any) -> Any:
    """What the older name's value is under today's name.

    Raises:
        ValueError: where the older name did not take such a value.
    """
    if old == "warmup_ratio":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(
                "must be a share of all steps, at least 0 and below 1; a number of steps is `warmup_steps`"
            )
        return float(value)
    if old == "group_by_length":
        named = {"yes": True, "on": True, "no": False, "off": False}
        wanted = named.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(wanted, bool):
            raise ValueError(
                f"must be true or false, not {kind(value)}; today's name is `train_sampling_strategy`"
            )
        return "group_by_length" if wanted else "random"
    return value
