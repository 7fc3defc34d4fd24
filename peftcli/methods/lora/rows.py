"""What a model's layers are given while it runs over rows, and which of the rows' positions count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError  # as of a file that is no such file: with weights_only it cannot run code
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import bare
from peftcli.errors import AdapterError
from peftcli.files import replacing
from peftcli.hub import first_line

# By the shape (rows, positions) of what a layer is given, which of its positions count.
Masks = Mapping[tuple[int, ...], torch.Tensor]
See = Callable[[str, tuple[Any, ...]], None]


def linear_modules(sites: Iterable[Site]) -> dict[str, nn.Module]:
    """The base's modules that an initialisation from rows can look at, by name."""
    modules = {site.name: bare(site.module) for site in sites if not site.parameter}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}


def token_masks(batch: Mapping[str, Any], ignored: int | None = None) -> Masks:
    """Which positions of a batch hold tokens; with `ignored` only those that have another label than this."""
    masks: dict[tuple[int, ...], torch.Tensor] = {}
    for name in ("attention_mask", "decoder_attention_mask", "labels"):
        part = batch.get(name)
        if not isinstance(part, torch.Tensor) or part.dim() != 2:
            continue
        if name == "labels":
            if ignored is None:
                continue
            mask = part.ne(ignored)
        else:
            mask = part.bool()
        shape = tuple(mask.shape)
        masks[shape] = masks[shape] & mask if shape in masks else mask
    return masks


def kept(x: torch.Tensor, masks: Masks) -> torch.Tensor:
    """A layer's inputs (N, I) at the positions that count; all of them where no mask fits."""
    mask = masks.get(tuple(x.shape[:2])) if x.dim() == 3 else None
    return x.flatten(0, -2) if mask is None else x[mask]


def by_row(x: torch.Tensor, masks: Masks) -> Iterator[torch.Tensor]:
    """The same, one row (T, I) after another; where there are no rows, all at once."""
    if x.dim() != 3:
        yield x.flatten(0, -2)
        return
    mask = masks.get(tuple(x.shape[:2]))
    for at, row in enumerate(x):
        yield row if mask is None else row[mask[at]]


def first_rows(batches: Iterable[Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    """The first batches, until so many rows have come."""
    for batch in batches:
        yield batch
        count -= next(len(part) for part in batch.values() if isinstance(part, torch.Tensor))
        if count <= 0:
            return


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Shows every call of these modules: the module's name, and the arguments."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                see(name, args or tuple(kwargs.values()))

            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, for as long as the context lasts."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def kept_tensors(
    file: str | Path | None, find: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What was found before and is in a file, or is found now and put there; without a file it is found now.

    Raises:
        AdapterError: where the file holds something else.
    """
    path = None if file is None else Path(file)
    if path is not None and path.is_file() and path.stat().st_size:
        try:
            tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise AdapterError(f"cannot be read: {first_line(error)}; delete it", where=str(path)) from error
        return tensors
    tensors = find()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(tensors, temporary)
    return tensors
