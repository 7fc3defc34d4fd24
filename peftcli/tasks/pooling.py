"""One vector of a text's tokens. Shapes: B texts, T tokens, H width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import ModelError, RecipeError

FILE = "1_Pooling/config.json"
# As sentence-transformers writes them in that file: a flag each, or, in newer ones, a name.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """A text's vector, (B, H), in float32 or better.

    Args:
        hidden: of the last layer, (B, N + T, H): N are virtual tokens in front, which belong to no text.
        mask: (B, T), 1 for a token and 0 for padding, which is on the right.
        pooling: `mean` of the tokens, the first (`cls`) or the `last`.
    """
    hidden = hidden[:, -mask.shape[1] :].to(torch.promote_types(hidden.dtype, torch.float32))
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(-1).to(hidden)
    return (hidden * weights).sum(1) / weights.sum(1)


def base_pooling(config: Any) -> str | None:
    """How the base's file of sentence-transformers says that it pools; None where it has none.

    Args:
        config: the base's Transformers config, which knows where it came from.

    Raises:
        ModelError: the file cannot be read.
        RecipeError: it pools in another way.
    """
    from transformers.utils import cached_file

    name = getattr(config, "name_or_path", "")
    if not name:
        return None
    try:
        path = cached_file(
            name,
            FILE,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
        )
        content = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{FILE} of {name!r} cannot be read; say task.pooling yourself") from error
    return None if content is None else _named(content, name)


def _named(content: Any, base: str) -> str:
    modes = content if isinstance(content, dict) else {}
    said = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    found = [_FLAGS.get(name) for name in said] or [_NAMES.get(str(modes.get("pooling_mode")))]
    if len(found) != 1 or found[0] is None:
        what = ", ".join(said) or modes.get("pooling_mode")
        raise RecipeError(
            f"{base!r} pools by {what}, which is not there; set task.pooling: mean, cls or last"
        )
    return found[0]
