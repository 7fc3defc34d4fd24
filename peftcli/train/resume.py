"""A run's checkpoints: taking one while training, and going on from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR

from peftcli.errors import RecipeError
from peftcli.train.feed import StreamRows
from peftcli.train.job import Job
from peftcli.train.log import Terminal
from peftcli.train.random_state import random_state, restore_random_state
from peftcli.train.state import (
    Progress,
    checkpoint_folder,
    read_checkpoint,
    rotate_checkpoints,
    write_checkpoint,
)
from peftcli.train.step import Engine


def save_checkpoint(job: Job, engine: Engine, progress: Progress) -> Path:
    """Writes checkpoint-N from the main process, and deletes what save_total_limit leaves no room for."""
    accelerator = engine.accelerator
    random_states = gather_object([random_state()])
    if accelerator.is_main_process:
        scaler, tuner = accelerator.scaler, engine.model.tuner
        states = {
            "optimizer": engine.optimizer.state_dict(),
            "scheduler": engine.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": random_states,
            "method": {} if tuner is None else tuner.training_state(),
        }
        training = None if job.settings.save_only_model else states
        write_checkpoint(job.output_dir, progress, training, job.save_adapter)
        best = checkpoint_folder(job.output_dir, progress.best_global_step or 0)
        rotate_checkpoints(job.output_dir, job.settings.save_total_limit, best)
    accelerator.wait_for_everyone()
    return checkpoint_folder(job.output_dir, progress.global_step)


def resume(job: Job, engine: Engine, terminal: Terminal) -> Progress:
    """Where the run starts: at nothing, or where a checkpoint stands, with all states as they were there.

    Raises:
        AdapterError: for a checkpoint that is torn or holds the model alone.
        RecipeError: where the recipe's batches are not those of the checkpoint.
    """
    layout = _layout(job, engine.accelerator.num_processes)
    if job.resume_from is None:
        return Progress(layout=layout)
    progress, training = read_checkpoint(job.resume_from)
    for name, now in layout.items():
        if (then := progress.layout.get(name)) != now:
            raise RecipeError(
                f"{job.resume_from} cannot be resumed so: {name} was {then} and is {now}; change it back, or train anew"
            )
    job.load_adapter(job.resume_from)
    _restore(engine, training, terminal)
    terminal.say(f"going on from {job.resume_from} after step {progress.global_step}")
    return progress


def _restore(engine: Engine, training: dict[str, Any], terminal: Terminal) -> None:
    accelerator, settings = engine.accelerator, engine.settings
    try:
        engine.optimizer.load_state_dict(training["optimizer"])
    except (KeyError, ValueError) as problem:
        raise RecipeError(
            f"the checkpoint's optimizer is not this one ({problem}); change training.optim and adapter "
            "back to what they were, or train anew"
        ) from problem
    if engine.model.tuner is not None:
        engine.model.tuner.load_training_state(training["method"])
    engine.scheduler.load_state_dict(training["scheduler"])
    schedule: Any = engine.scheduler
    if isinstance(schedule, LambdaLR):
        # A run that is made longer goes on at the rate of the longer schedule, not at the end of the shorter one.
        rates = zip(engine.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, base, share in rates:
            group["lr"] = base * share(schedule.last_epoch)
    if accelerator.scaler is not None and training["scaler"] is not None:
        accelerator.scaler.load_state_dict(training["scaler"])
    states = training["random"]
    if len(states) == accelerator.num_processes:
        restore_random_state(states[accelerator.process_index])
    else:
        terminal.say(
            f"the checkpoint is of {len(states)} processes: dropout draws anew from seed {settings.seed}"
        )


def _layout(job: Job, processes: int) -> dict[str, Any]:
    """What a resumed run must have as it was.

    It decides which rows are in which micro-batch, or would be put back by the optimizer's and the schedule's saved
    states without a word.
    """
    settings, rows = job.settings, job.train_rows
    return {
        "rows": None if isinstance(rows, StreamRows) else len(rows),
        "rows of a micro-batch over all processes": settings.per_device_train_batch_size * processes,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "train_sampling_strategy": settings.train_sampling_strategy,
        "dataloader_drop_last": settings.dataloader_drop_last,
        "data_seed": settings.seed if settings.data_seed is None else settings.data_seed,
        "optim": settings.optim,
        "optim_args": settings.optim_args,
        "learning_rate": settings.learning_rate,
        "loraplus_lr_ratio": settings.loraplus_lr_ratio,
        "loraplus_lr_embedding": settings.loraplus_lr_embedding,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "lr_scheduler_type": settings.lr_scheduler_type,
    }
