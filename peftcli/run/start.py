"""How a run's adapter starts where its config alone does not say it, and how it is written then.

Some methods look at the first training rows before there is an adapter. Some start with a part of the base, which is
another one then. Their adapters are written as plain ones for the base as it was, which hold the start beside what was
trained: anyone can load them, and a run that goes on from one starts where it started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.adapters.method import Method, Sample
from peftcli.errors import DataError
from peftcli.peft.model import PeftModel
from peftcli.peft.storage import load_peft_weights, set_peft_model_state_dict
from peftcli.recipe.schema import Recipe
from peftcli.recipe.training import Training
from peftcli.registry import ENGINES, resolve
from peftcli.run.inputs import Inputs, Say
from peftcli.train.failures import memory_errors
from peftcli.train.feed import on_device, train_feed
from peftcli.train.sampler import Deal

# A few batches are read in this process.
_ALONE: dict[str, Any] = {
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
}


def find_start(
    base: nn.Module, config: Any, recipe: Recipe, inputs: Inputs, *, checkpoint: Path | None, say: Say
) -> None:
    """Lets the adapter's method find in the rows, or in a checkpoint, how the adapter starts; most need neither.

    Args:
        base: the base model, in which the method leaves what it finds.
        config: the adapter's config, which the method completes.
        recipe: the run.
        inputs: its rows and task.
        checkpoint: where it goes on from.
        say: gets a line.

    Raises:
        AdapterError: the method cannot start so on this base.
        DataError: there are no rows, or none that it could learn from.
        MemoryLimitError: out of memory.
    """
    rows = inputs.prepared.train
    if config.reads_inputs and isinstance(rows, Sequence):  # rows that are streamed are seen but once
        reader: Method = resolve(ENGINES, str(config.peft_type), what="peft_type")()
        if line := reader.about(config, (row["input_ids"] for row in rows)):
            say(line)
    if not (config.starts_from_data or config.changes_base):
        return
    method: Method = resolve(ENGINES, str(config.peft_type), what="peft_type")()
    if checkpoint is not None:
        method.recall(base, config, PeftConfig.from_pretrained(checkpoint), load_peft_weights(checkpoint))
    elif config.starts_from_data:
        with memory_errors(recipe.training):
            device = _placed(base, recipe.training)
            inputs.task.check_model(base)
            sample = Sample(_epochs(recipe.training, inputs, device), _loss(recipe.training, inputs, device))
            say(method.prepare(base, config, sample))


@contextmanager
def starting_point(model: PeftModel) -> Iterator[Path | None]:
    """The folder of the untrained adapter, where it starts with a part of the base; None where it does not."""
    config: Any = model.active_peft_config
    if not config.changes_base or config.use_dora:
        yield None
        return
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def save_adapter(model: PeftModel, folder: Path, start: Path | None) -> None:
    """Writes the adapter; with a starting point as a plain one for the base as it is published."""
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=start)


def load_adapter(model: PeftModel, folder: Path, start: Path | None) -> None:
    """Takes the weights back that were written so."""
    name = model.active_adapter
    if start is None:
        model.load_adapter(folder, name, is_trainable=True)
        return
    trained, _ = model.tuner.method_of(name).parted(load_peft_weights(folder))
    set_peft_model_state_dict(model, trained, name, where=str(folder))


def _placed(base: nn.Module, settings: Training) -> torch.device:
    """Puts the base where it will be trained; a quantized one is there already."""
    accelerator = None if settings.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    here = next(base.parameters()).device
    if accelerator is None or here.type != "cpu":
        return here
    base.to(accelerator)
    return next(base.parameters()).device


def _epochs(
    settings: Training, inputs: Inputs, device: torch.device
) -> Iterator[Iterator[Mapping[str, Any]]]:
    """The training's epochs, in its order. Every process sees the same rows: they must find the same."""
    deal = Deal(settings.per_device_train_batch_size)
    feed = train_feed(inputs.prepared.train, inputs.task, settings.model_copy(update=_ALONE), deal, pin=False)

    def batches(epoch: int) -> Iterator[Mapping[str, Any]]:
        empty = True
        for micro in feed.epoch(epoch, 0):
            empty = False
            yield on_device(micro.tensors, device)
        if empty:
            raise DataError("the training data has no rows")

    return map(batches, count())


def _loss(settings: Training, inputs: Inputs, device: torch.device) -> Any:
    precision = torch.float16 if settings.fp16 else torch.bfloat16

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, precision, enabled=settings.fp16 or settings.bf16):
            return inputs.task.loss(model, batch)

    return loss
