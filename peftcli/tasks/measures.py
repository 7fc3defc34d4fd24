"""The field's own libraries for metrics, from the extra `metrics`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from peftcli.errors import RecipeError

# Import name -> the package's name.
_PACKAGES = {"sklearn": "scikit-learn", "rouge_score": "rouge-score"}


def measure(module: str) -> Any:
    """A module of a metrics library.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        name = _PACKAGES.get(package, package)
        raise RecipeError(f"{name} is not installed; run `pip install 'peftcli[metrics]'`") from error


def has_measure(module: str) -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def missing_measures(wanted: Mapping[str, str]) -> list[str]:
    """A line for each library that is not installed; `wanted` names what is computed with it."""
    return [
        f"{what} will not be computed: {_PACKAGES.get(module, module)} is not installed; run `pip install "
        "'peftcli[metrics]'`"
        for module, what in wanted.items()
        if not has_measure(module)
    ]
