"""Training: one loop for every method and task.

Read `train` first, then downwards: set up, go on where a checkpoint stands, step by step, and after each step
what the recipe's strategies say. What a step is stands in step.py, what a checkpoint is in state.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from peftcli.errors import DataError, DivergedError, Interrupted, RecipeError
from peftcli.recipe.names import METRIC_SCHEDULERS
from peftcli.recipe.training import Training
from peftcli.train.evaluate import check_metrics, evaluate
from peftcli.train.failures import FiniteWatch, diverged, memory_errors
from peftcli.train.feed import (
    Feed,
    MicroBatch,
    eval_batches,
    pins_memory,
    steps_in_epoch,
    train_feed,
    windows,
)
from peftcli.train.job import Job, Outcome
from peftcli.train.log import Metrics, Reporter, Terminal, finite
from peftcli.train.meter import Meter, peak_memory
from peftcli.train.model import trained_model
from peftcli.train.optim import build_optimizer
from peftcli.train.process import speaks, start_trackers, training_process
from peftcli.train.resume import resume, save_checkpoint
from peftcli.train.sampler import Deal
from peftcli.train.schedule import build_scheduler
from peftcli.train.state import Progress, checkpoint_folder, find_checkpoint, remove_partial
from peftcli.train.step import Engine, Stepped, run_step
from peftcli.train.stopping import StopRequest, stop_on_signals
from peftcli.train.timetable import (
    Timetable,
    best_metric_name,
    greater_is_better,
    is_exhausted,
    judge,
    needs_best_metric,
)

__all__ = ["Job", "Outcome", "train"]

_EVAL_ROWS = "training.per_device_eval_batch_size:"


@dataclass(frozen=True)
class _Run:
    """A job that is set up."""

    job: Job
    engine: Engine
    feed: Feed
    eval_loader: DataLoader[Any] | None
    timetable: Timetable
    progress: Progress
    meter: Meter
    reporter: Reporter

    @property
    def finished(self) -> bool:
        done = self.progress.global_step >= self.timetable.total_steps
        return done or is_exhausted(self.progress, self.job.settings)


def train(job: Job) -> Outcome:
    """Trains `job.model` in place, leaving metrics.jsonl and checkpoints in `job.output_dir`.

    Raises:
        RecipeError: settings that this machine, model or data cannot follow.
        DataError: a stream without rows.
        AdapterError: a checkpoint to resume from that is torn or holds the model alone.
        DivergedError: the loss or its gradient is not finite.
        MemoryLimitError: out of memory.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was saved.
    """
    with ExitStack() as stack:
        stack.enter_context(memory_errors(job.settings))
        process = training_process(job.settings, job.output_dir, tokens_per_step=_expected_tokens(job))
        run = stack.enter_context(_set_up(job, stack.enter_context(process)))
        stack.enter_context(stop_on_signals(run.engine.stop))
        if job.settings.eval_on_start and not run.progress.global_step:
            _evaluate(run)
        try:
            while not run.finished:
                _train_epoch(run)
        except DivergedError as error:
            raise _told(run, error) from error
        return _finish(run)


def _expected_tokens(job: Job) -> float:
    """Roughly the trained tokens of a step in one process."""
    lengths: list[int] = getattr(job.train_rows, "lengths", None) or [512]
    rows = job.settings.per_device_train_batch_size * job.settings.gradient_accumulation_steps
    return rows * job.task.weight(sum(lengths) / len(lengths))


# Setting up.


@contextmanager
def _set_up(job: Job, accelerator: Accelerator) -> Iterator[_Run]:
    settings = job.settings
    pin = pins_memory(settings, accelerator.device)
    deal = Deal(settings.per_device_train_batch_size, accelerator.num_processes, accelerator.process_index)
    feed = train_feed(job.train_rows, job.task, settings, deal, pin=pin)
    total_steps = _total_steps(feed, settings)
    with ExitStack() as stack:
        model = stack.enter_context(trained_model(job.model, accelerator, settings))
        with accelerator.autocast():
            job.task.check_model(job.model)
            stack.enter_context(job.task.readied(job.model))
        optimizer = build_optimizer(job.model, settings)
        engine = Engine(
            accelerator=accelerator,
            model=model,
            task=job.task,
            optimizer=optimizer,
            scheduler=build_scheduler(
                optimizer, settings, total_steps, greater_is_better=greater_is_better(settings)
            ),
            parameters=[each for group in optimizer.param_groups for each in group["params"]],
            settings=settings,
            total_steps=total_steps,
            watch=FiniteWatch(settings, accelerator.device),
            stop=StopRequest(processes=accelerator.num_processes),
        )
        eval_loader = _eval_loader(job, accelerator, pin=pin)
        terminal = Terminal(
            job.console, settings, speaks=speaks(settings, accelerator), counted=job.task.counted
        )
        progress = resume(job, engine, terminal)
        if accelerator.is_main_process:
            job.output_dir.mkdir(parents=True, exist_ok=True)
            job.begin()
            remove_partial(job.output_dir)
        start_trackers(accelerator, settings)
        metrics = Metrics(job.output_dir, progress.log_history) if accelerator.is_main_process else None
        reporter = stack.enter_context(closing(Reporter(metrics, terminal, accelerator)))
        terminal.start(progress.global_step, total_steps)
        meter = Meter(progress, accelerator.device)
        yield _Run(
            job, engine, feed, eval_loader, Timetable(settings, total_steps), progress, meter, reporter
        )


def _total_steps(feed: Feed, settings: Training) -> int:
    if settings.max_steps > 0:
        return settings.max_steps
    steps = steps_in_epoch(feed, settings)
    assert steps is not None
    return math.ceil(settings.num_train_epochs * steps)


def _eval_loader(job: Job, accelerator: Accelerator, *, pin: bool) -> DataLoader[Any] | None:
    settings = job.settings
    if job.eval_rows is None:
        if settings.eval_strategy != "no" or settings.eval_on_start:
            raise RecipeError("training.eval_strategy: there are no rows to evaluate on; set data.eval")
        return None
    loader = eval_batches(
        job.eval_rows,
        job.task,
        settings,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        pin=pin,
    )
    names = {"metric_for_best_model": best_metric_name(settings)} if needs_best_metric(settings) else {}
    wanted = {
        **{f"gates.{name}": name for name in job.gated},
        **{f"training.{k}": v for k, v in names.items()},
    }
    wanted = {key: name for key, name in wanted.items() if name != "eval_loss"}
    if wanted:
        with memory_errors(settings, evaluating=_EVAL_ROWS):
            check_metrics(
                wanted,
                model=job.model,
                task=job.task,
                batches=loader,
                accelerator=accelerator,
                settings=settings,
            )
    return loader


# Step by step.


def _train_epoch(run: _Run) -> None:
    """From where the run stands to the end of the epoch, or of the run."""
    progress, size = run.progress, run.job.settings.gradient_accumulation_steps
    window_seen = False
    for window, is_last in windows(run.feed.epoch(progress.epoch, progress.micro_batch), size):
        window_seen = True
        stepped = run_step(run.engine, window, progress.global_step + 1)
        _advance(run, window, epoch_ends=is_last)
        run.meter.add(stepped.sums)
        if stepped.skipped:
            _skipped(run)
        run.reporter.terminal.advance(progress.global_step)
        _follow_up(run, stepped, epoch_ends=is_last)
        if run.finished:
            return
    if not window_seen:
        raise DataError("the training data has no rows")


def _advance(run: _Run, window: list[MicroBatch], *, epoch_ends: bool) -> None:
    progress = run.progress
    progress.global_step += 1
    progress.micro_batch += len(window)
    # A stream's length is unknown: its epochs are counted as if one lasted for the whole run.
    whole = run.feed.micro_batches
    if whole is None:
        whole = run.timetable.total_steps * run.job.settings.gradient_accumulation_steps
    progress.passed = progress.epoch + progress.micro_batch / whole
    if epoch_ends:
        progress.epoch, progress.micro_batch = progress.epoch + 1, 0
        progress.passed = float(progress.epoch)


def _follow_up(run: _Run, stepped: Stepped, *, epoch_ends: bool) -> None:
    """What is due after a step: log, evaluate, save, stop."""
    progress, settings = run.progress, run.job.settings
    due = run.timetable.due(progress.global_step, progress.passed, epoch_ends=epoch_ends)
    stops = run.engine.stop.agreed() and not run.finished
    if due.log or due.evaluate or due.save or stops or run.finished:
        run.engine.watch.check()
    if due.log:
        _log(run, stepped)
    is_best = due.evaluate and _judge(run, _evaluate(run))
    wants_best = settings.load_best_model_at_end or settings.save_strategy == "best"
    if due.save or stops or (is_best and wants_best):
        folder = _save(run)
    if stops:
        way = "it holds the model alone" if settings.save_only_model else "go on with --resume"
        raise Interrupted(f"interrupted after step {progress.global_step}, which is saved in {folder}; {way}")


def _skipped(run: _Run) -> None:
    """A step whose loss or gradient was not finite is counted, and said with its rows."""
    run.progress.skipped_steps += 1
    step = run.progress.global_step
    run.reporter.terminal.say(
        f"step {step} was skipped: its loss or gradient is NaN or infinite{_rows_of(run, step)}"
    )


def _rows_of(run: _Run, step: int) -> str:
    places = run.feed.places(step)
    more = f" and {len(places) - 8} more" if len(places) > 8 else ""
    return f"; its rows: {', '.join(places[:8])}{more}" if places else ""


def _told(run: _Run, error: DivergedError) -> DivergedError:
    """The error with the step's rows and the last good state, which is saved first where it is still there."""
    settings, progress = run.job.settings, run.progress
    on_cpu = run.engine.accelerator.device.type == "cpu"
    # On the CPU a step is refused before it changes a weight: the weights are those after the step before.
    if on_cpu and 0 < progress.global_step == error.step - 1 and not settings.save_only_model:
        folder = checkpoint_folder(run.job.output_dir, progress.global_step)
        if not folder.is_dir():
            _save(run)
    good = find_checkpoint(run.job.output_dir)
    kept = f"the last good state is in {good}" if good else "no good state was saved before it"
    return DivergedError(f"{error.message}{_rows_of(run, error.step)}; {kept}", step=error.step)


def _log(run: _Run, stepped: Stepped) -> None:
    progress = run.progress
    run.meter.read()
    tokens = progress.tokens - progress.logged_tokens
    record = {
        "step": progress.global_step,
        "epoch": progress.passed,
        "loss": (progress.loss_sum - progress.logged_loss_sum) / max(tokens, 1),
        "learning_rate": stepped.learning_rate,
        "grad_norm": finite(float(stepped.grad_norm)),
        "tokens": progress.tokens,
        "tokens_per_second": tokens / max(progress.seconds - progress.logged_seconds, 1e-9),
        "peak_memory_bytes": peak_memory(run.engine.accelerator.device),
    }
    if progress.skipped_steps:
        record["skipped_steps"] = progress.skipped_steps
    if run.job.settings.include_num_input_tokens_seen not in {False, "no"}:
        record["num_input_tokens_seen"] = progress.input_tokens
    progress.logged_loss_sum, progress.logged_tokens = progress.loss_sum, progress.tokens
    progress.logged_seconds = progress.seconds
    progress.log_history.append(record)
    run.reporter.trained(record, run.timetable.total_steps)


def _evaluate(run: _Run) -> dict[str, float]:
    """The `eval_…` values of the model as it is, logged."""
    assert run.eval_loader is not None
    engine, progress = run.engine, run.progress
    with run.meter.paused(), memory_errors(engine.settings, evaluating=_EVAL_ROWS):
        found = evaluate(
            engine.model.plain, engine.task, run.eval_loader, engine.accelerator, engine.settings
        )
    # Another metric may well be undefined (a correlation with what never changes); the loss may not.
    if not math.isfinite(found["eval_loss"]):
        raise diverged(progress.global_step, engine.settings)
    record = {"step": progress.global_step, "epoch": progress.passed, **found}
    progress.log_history.append(record)
    run.reporter.evaluated(record)
    return found


def _judge(run: _Run, found: dict[str, float]) -> bool:
    """Tells the schedule and early stopping about an evaluation; whether it is the best so far."""
    settings = run.job.settings
    if not needs_best_metric(settings):
        return False
    value = found[best_metric_name(settings)]
    if settings.lr_scheduler_type in METRIC_SCHEDULERS:
        run.engine.scheduler.step(value)
    is_best = judge(run.progress, value, settings)
    if is_exhausted(run.progress, settings):
        run.reporter.terminal.say(
            f"stopping early: {run.progress.worse_evaluations} evaluations without a better one"
        )
    return is_best


def _save(run: _Run) -> Path:
    with run.meter.paused():
        run.meter.read()
        folder = save_checkpoint(run.job, run.engine, run.progress)
    run.reporter.terminal.say(f"saved {folder}")
    return folder


# The end.


def _finish(run: _Run) -> Outcome:
    run.meter.read()
    progress, job = run.progress, run.job
    best = checkpoint_folder(job.output_dir, progress.best_global_step or 0)
    takes_best = job.settings.load_best_model_at_end and best.is_dir()
    if takes_best:
        job.load_adapter(best)
        run.reporter.terminal.say(
            f"took the weights of the best checkpoint, {best} "
            f"({best_metric_name(job.settings)} {progress.best_metric:.4g})"
        )
    # What is said at the end is said of the weights that are there.
    until = progress.best_global_step if takes_best and progress.best_global_step else progress.global_step
    evaluations = [
        record for record in progress.log_history if "eval_loss" in record and record["step"] <= until
    ]
    last = evaluations[-1] if evaluations else {}
    return Outcome(
        global_step=progress.global_step,
        epoch=progress.passed,
        train_loss=progress.loss_sum / max(progress.tokens, 1),
        best_metric=progress.best_metric,
        best_checkpoint=best if best.is_dir() else None,
        last_eval={name: value for name, value in last.items() if name.startswith("eval_")},
        seconds=progress.seconds,
        tokens=progress.tokens,
        peak_memory_bytes=peak_memory(run.engine.accelerator.device),
        is_main_process=run.engine.accelerator.is_main_process,
    )
