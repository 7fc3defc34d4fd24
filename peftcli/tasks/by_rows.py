"""Batches without padding: rows one behind another in one, which attend to themselves only.

Transformers' models call their attention by a name (`AttentionInterface`). Ours is told where rows begin, through the
arguments that Transformers has for this (`cu_seq_lens_q`), and needs no mask. A model is taken on trial: where it says
anything else of rows so joined than of the same rows alone, its batches are padded as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.kernels.row_attention import attend
from peftcli.tasks.unwrapped import evaluating, unwrapped

NAME = "peftcli_rows"
# What says something else of attention than that it is causal, within a window or not.
_KINDS = {"full_attention", "sliding_attention"}


@contextmanager
def attending_by_rows(model: nn.Module, like: nn.Module | None = None) -> Iterator[bool]:
    """Lets the model attend by rows, if it can, until the end; says whether it does.

    A model that does takes nothing but joined rows: `input_ids`, `position_ids` and `cu_seq_lens_q`.

    Args:
        model: any.
        like: one of its kind that is taken on trial in its place, where the model has shapes only and no numbers.
    """
    base: Any = unwrapped(model)
    before = _replaceable(base)
    if before is None or not _stands_trial(like or model):
        yield False
        return
    base.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        base.set_attn_implementation(before)


def parameters(base: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What a model's `forward` takes."""
    return inspect.signature(type(base).forward).parameters


def logits(model: nn.Module, base: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The model's, without a cache: with one, Transformers would not look for packed rows."""
    cache = {"use_cache": False} if "use_cache" in parameters(base) else {}
    found: Tensor = model(**inputs, **cache).logits
    return found


def mixes_packed_rows(model: nn.Module, base: nn.Module) -> bool:
    """Whether what the model says of a packed row depends on the row before it."""
    ids, positions = _two_rows(base)
    one, other = (
        _tried(model, base, {"input_ids": row.unsqueeze(0), "position_ids": positions})[0, 4:]
        for row in (ids, _another_first(ids))
    )
    return not _same(one, other)


def _replaceable(base: Any) -> str | None:
    """The attention that stands in the model, where ours may take its place."""
    _register()
    config = getattr(base, "config", None)
    kinds = {*(getattr(config, "layer_types", None) or _KINDS)}
    takes_more = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters(base).values())
    able = (
        getattr(config, "_attn_implementation", None) == "sdpa"
        and kinds <= _KINDS
        and getattr(config, "attention_chunk_size", None) is None
        and takes_more
        and "position_ids" in parameters(base)
        and getattr(base, "_can_set_attn_implementation", bool)()
        # On other devices a kernel a row costs more than padding does.
        and base.get_input_embeddings().weight.device.type == "cpu"
    )
    return "sdpa" if able else None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Sequence[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers calls it: (1, heads, T, D) to (1, T, heads, D)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if cu_seq_lens_q is None or attention_mask is not None or not causal or unknown:
        raise NotImplementedError(f"attention by rows is causal, and of joined rows only {unknown}")
    attended = attend(
        query[0], key[0], value[0], cu_seq_lens_q, dropout=dropout, scaling=scaling, window=sliding_window
    )
    return attended.unsqueeze(0), None


# The trial.


def _stands_trial(model: nn.Module) -> bool:
    base: Any = unwrapped(model)
    before = base.config._attn_implementation  # noqa: SLF001  (Transformers has no public name for it)
    wanted = _alone(model, base)
    base.set_attn_implementation(NAME)
    try:
        return _agrees(model, base, wanted)
    finally:
        base.set_attn_implementation(before)


def _two_rows(base: Any) -> tuple[Tensor, Tensor]:
    """Two rows of four tokens, joined, and their positions."""
    embeddings = base.get_input_embeddings()
    ids = torch.arange(8, device=embeddings.weight.device) % embeddings.num_embeddings
    return ids, torch.arange(8, device=ids.device).remainder(4).unsqueeze(0)


def _another_first(ids: Tensor) -> Tensor:
    return torch.cat([ids[:4].flip(0), ids[4:]])


def _alone(model: nn.Module, base: nn.Module) -> Tensor:
    """What the model says of four rows, as four rows."""
    rows = _four_rows(base)
    return _tried(model, base, {"input_ids": rows, "attention_mask": torch.ones_like(rows)}).flatten(0, 1)


def _agrees(model: nn.Module, base: nn.Module, wanted: Tensor) -> bool:
    """Whether it says the same of them joined, up to what other kernels round otherwise."""
    ids = _four_rows(base).view(1, -1)
    where = {"position_ids": torch.arange(ids.numel(), device=ids.device).remainder(4).unsqueeze(0)}
    try:
        joined = _tried(model, base, {"input_ids": ids, **where, "cu_seq_lens_q": [0, 4, 8, 12, 16]})[0]
    except NotImplementedError:
        return False
    return _same(joined, wanted, roundings=torch.finfo(joined.dtype).eps ** -0.5)


def _four_rows(base: Any) -> Tensor:
    """Of the same row each time, behind others: what it sees of them would show. (4, 4)."""
    ids, _ = _two_rows(base)
    return torch.cat([ids, _another_first(ids)]).view(4, 4)


def _tried(model: nn.Module, base: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    with evaluating(model):
        return logits(model, base, inputs)


def _same(one: Tensor, other: Tensor, roundings: float = 4) -> bool:
    rounding = roundings * torch.finfo(one.dtype).eps * one.abs().max()
    return bool((one - other).abs().max() <= rounding)
