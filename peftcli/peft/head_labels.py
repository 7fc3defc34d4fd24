"""The labels of the head that an adapter brings: how many there are, and what a run called them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from peftcli.errors import AdapterError, HubError
from peftcli.hub import fetch
from peftcli.peft.storage import PREFIX, WEIGHTS_NAME

LABELS_NAME = "labels.json"
# A head's last layer, as Transformers' classes for classification name it.
_LAST = (
    "classifier.weight",
    "classifier.out_proj.weight",
    "classification_head.out_proj.weight",
    "score.weight",
)


def head_options(source: str, subfolder: str | None, hub: Any) -> dict[str, Any]:
    """What a base's `from_pretrained` must be told so that an adapter's head fits it; nothing where there is no head.

    Args:
        source: the adapter's folder or repository.
        subfolder: a folder in it.
        hub: how to fetch from the Hub.

    Raises:
        AdapterError: there is no such adapter.
        HubError: the Hub cannot be reached.
    """
    count = _rows(fetch(source, WEIGHTS_NAME, subfolder, **hub))
    if count is None:
        return {}
    options: dict[str, Any] = {"num_labels": count, "ignore_mismatched_sizes": True}
    names = _names(source, subfolder, hub)
    if len(names) != count:
        return options
    return options | {"id2label": names, "label2id": {name: at for at, name in names.items()}}


def _rows(path: Path) -> int | None:
    """How many rows a head in the file has."""
    try:
        with safe_open(path, "pt") as file:
            for key in {PREFIX + name for name in _LAST} & set(file.keys()):
                return int(file.get_slice(key).get_shape()[0])
    except SafetensorError:
        return None  # loading says what is wrong with it
    return None


def _names(source: str, subfolder: str | None, hub: Any) -> dict[int, str]:
    """The names beside the adapter; none where another tool wrote it."""
    try:
        content = json.loads(fetch(source, LABELS_NAME, subfolder, **hub).read_text(encoding="utf-8"))
        return {int(at): str(name) for at, name in content["id2label"].items()}
    except (AdapterError, HubError, ValueError, KeyError, TypeError, AttributeError):
        return {}
