"""What many prompts begin with alike (a system prompt, an instruction) is read once, and kept for all of them.

A batch then goes on from copies of the keys and values that the model made of it; where prompts are of other lengths,
padding stands behind what they share. All is read for each where a model keeps anything else, or where, on trial, two
prompts get other logits this way, as they would with positions that count padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from peftcli.errors import MemoryLimitError

# With fewer prompts, or fewer tokens in common, the trial costs more than is won.
_PROMPTS, _TOKENS = 8, 32


class Prefix:
    """Tokens that have been read, and the cache of one row that the model made of them."""

    def __init__(self, ids: list[int], cache: Any) -> None:
        self.ids = ids
        self._cache = cache

    def cache(self, rows: int) -> Any:
        """A copy for so many rows: generating goes on in it."""
        own = copy.deepcopy(self._cache)
        own.batch_repeat_interleave(rows)
        return own


def shared_prefix(
    prompts: Sequence[list[int]], read: Callable[[list[int]], Any], say: Callable[[list[list[int]], Any], Any]
) -> Prefix | None:
    """What the prompts share, read; None where that is little, or the model says something else with it.

    Args:
        prompts: token ids.
        read: what the model's cache is after these tokens.
        say: the logits (B, V) that follow some prompts, with a prefix or without (None).
    """
    ids = common_start(prompts)
    if len(prompts) < _PROMPTS or len(ids) < _TOKENS:
        return None
    by_length = sorted(prompts, key=len)
    # The widest padding that can stand between the prefix and the rest of a prompt.
    tried = [by_length[0], by_length[-1]]
    try:
        cache = read(ids)
        if not _keeps_all(cache):
            return None
        prefix = Prefix(ids, cache)
        found, wanted = say(tried, prefix), say(tried, None)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, MemoryLimitError):
        # Another kind of cache, or no room for two rows.
        return None
    import torch

    rounding = torch.finfo(wanted.dtype).eps ** 0.5 * wanted.abs().max()
    return prefix if bool((found - wanted).abs().max() <= rounding) else None


def _keeps_all(cache: Any) -> bool:
    """Whether it has keys and values of all tokens: a window would count the padding, and states have none."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def common_start(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens with which all begin; each has one more at least."""
    if not prompts:
        return []
    # Of the first and the last in the order of lists, since all others lie between them.
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    end = next((at for at in range(most) if first[at] != last[at]), max(most, 0))
    return first[:end]
