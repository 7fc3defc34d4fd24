"""What tells a folder of a diffusers pipeline from that of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftcli.errors import ModelError
from peftcli.hub import first_line

INDEX = "model_index.json"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ModelError: it is not there, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot be read as JSON: {first_line(error)}", where=str(path)) from error


def kind_of(folder: Path) -> str:
    """The class of the pipeline in a folder, as its index says it.

    Raises:
        ModelError: the index cannot be read, or says no class.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str):
        raise ModelError("says no _class_name: it is no index of a pipeline", where=str(folder / INDEX))
    return kind
