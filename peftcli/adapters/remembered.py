"""Results that are computed once for many layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def remembered(size: int) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Remembers so many results of a function of plain values, but none without numbers (of a memory plan, on meta)."""

    def decorate(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        cached = lru_cache(maxsize=size)(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            made_now = torch.empty(0)
            if type(made_now) is not Tensor or made_now.is_meta:
                return function(*args, **kwargs)
            return cached(*args, **kwargs)  # type: ignore[arg-type]  # lru_cache's types do not know which can be hashed

        return call

    return decorate
