"""Rules between keys, and of names in tables; each is checked only where all of its keys are well-formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from peftcli.errors import did_you_mean
from peftcli.recipe.gates import parse_gate
from peftcli.recipe.names import (
    CHECKPOINTING,
    METRIC_SCHEDULERS,
    OPTIMIZERS,
    QUANTIZATION,
    REFUSED_OPTIMIZERS,
    SCHEDULERS,
    TRACKERS,
)
from peftcli.recipe.schema import Recipe, Source
from peftcli.recipe.source import KeyPath
from peftcli.recipe.task_rules import TASK_RULES, Finding, Rule
from peftcli.recipe.tasks import OPTIONS
from peftcli.recipe.training import Training
from peftcli.registry import FORMATS

RULES: list[tuple[tuple[str, ...], Rule]] = [*TASK_RULES]


def _rule(*keys: str) -> Callable[[Rule], Rule]:
    """Registers a rule with the keys (`training.max_steps`) that it reads."""

    def register(rule: Rule) -> Rule:
        RULES.append((keys, rule))
        return rule

    return register


def findings(recipe: Recipe, broken: set[KeyPath]) -> Iterator[Finding]:
    """What the rules find, leaving out each rule that reads a key at or around a broken one."""
    for keys, rule in RULES:
        paths = [tuple(key.split(".")) for key in keys]
        if not any(_overlap(path, bad) for path in paths for bad in broken):
            yield from rule(recipe)


def _overlap(path: KeyPath, bad: KeyPath) -> bool:
    shorter = min(len(path), len(bad))
    return path[:shorter] == bad[:shorter]


@_rule("quantization")
def _quantization(recipe: Recipe) -> Iterator[Finding]:
    fields = recipe.quantization
    if fields is None:
        return
    for name, value in fields.items():
        if name in QUANTIZATION and not isinstance(value, QUANTIZATION[name]):
            kinds = {bool: "true or false", list: "a list of module names", str: "text"}
            wanted = next((words for kind, words in kinds.items() if QUANTIZATION[name] is kind), "a number")
            yield ("quantization", name), f"must be {wanted}"
        elif name not in QUANTIZATION:
            yield (
                ("quantization", name),
                f"is not a field of BitsAndBytesConfig; {did_you_mean(name, QUANTIZATION)}",
            )
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if fields.get(name)]
    if len(bits) != 1:
        yield ("quantization",), "needs exactly one of `load_in_4bit: true` and `load_in_8bit: true`"


@_rule("data", "task_type")
def _formats(recipe: Recipe) -> Iterator[Finding]:
    formats = OPTIONS[recipe.task_type].FORMATS if recipe.task_type in OPTIONS else FORMATS
    for path, source in _sources(recipe):
        if source.type is not None and source.type not in FORMATS:
            yield (*path, "type"), f"unknown format '{source.type}'; {did_you_mean(source.type, FORMATS)}"
        elif source.type is not None and source.type not in formats:
            known = ", ".join(formats)
            yield (*path, "type"), f"'{source.type}' is not for {recipe.task_type}; use one of: {known}"
        elif source.type not in {None, "text"} and recipe.data.overflow == "split":
            message = (
                f"`split` is for rows of type text, and {'.'.join(map(str, path))} has type {source.type}"
            )
            yield ("data", "overflow"), f"{message}; choose error, truncate or drop"


def _sources(recipe: Recipe) -> Iterator[tuple[KeyPath, Source]]:
    for name, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            yield ("data", name, index), source


@_rule(
    "data.streaming",
    "data.eval",
    "training.max_steps",
    "training.train_sampling_strategy",
    "training.dataloader_persistent_workers",
    "training.dataloader_num_workers",
)
def _streaming(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.data.streaming:
        return
    if recipe.training.max_steps < 1:
        yield (
            ("data", "streaming"),
            "a stream's length is not known; say how long to train with `training.max_steps`",
        )
    if isinstance(recipe.data.eval, float):
        yield ("data", "eval"), "a stream cannot be split by a fraction; give `data.eval` its own source"
    if recipe.training.train_sampling_strategy == "group_by_length":
        key = ("training", "train_sampling_strategy")
        yield key, "the lengths of a stream's rows are not known; choose random or sequential"
    if recipe.training.dataloader_persistent_workers:
        key = ("training", "dataloader_persistent_workers")
        yield key, "a stream's worker starts anew with every epoch; leave it out"
    if recipe.training.dataloader_num_workers > 1:
        key = ("training", "dataloader_num_workers")
        yield key, "a stream is read by one process; set it to 0 or 1, or `data.streaming` to false"


@_rule("data.eval", "training.eval_strategy", "training.eval_on_start", "gates")
def _evaluation_rows(recipe: Recipe) -> Iterator[Finding]:
    if recipe.data.eval is not None:
        return
    remedy = "needs rows to evaluate on; set `data.eval` to a fraction such as 0.1, or to a source"
    if recipe.training.eval_strategy != "no":
        yield ("training", "eval_strategy"), remedy
    if recipe.training.eval_on_start:
        yield ("training", "eval_on_start"), remedy
    if recipe.gates:
        yield ("gates",), remedy


@_rule(
    "task_type",
    "training.predict_with_generate",
    "training.generation_max_length",
    "training.generation_num_beams",
    "training.prediction_loss_only",
)
def _generation(recipe: Recipe) -> Iterator[Finding]:
    training, options = recipe.training, OPTIONS.get(recipe.task_type)
    wanted = training.predict_with_generate
    if wanted and options is not None and not options.GENERATES:
        yield ("training", "predict_with_generate"), f"has no meaning for {recipe.task_type}; leave it out"
    if wanted and training.prediction_loss_only:
        yield ("training", "predict_with_generate"), "prediction_loss_only is on too; choose one of them"
    for name in ("generation_max_length", "generation_num_beams"):
        if not wanted and getattr(training, name) is not None:
            yield ("training", name), "does nothing without `predict_with_generate: true`; set that too"


@_rule("quantization", "training.use_cpu")
def _quantized_on_cpu(recipe: Recipe) -> Iterator[Finding]:
    if recipe.quantization is not None and recipe.training.use_cpu:
        yield ("training", "use_cpu"), "a quantized base needs its accelerator; leave out one of the two"


@_rule("gates")
def _gates(recipe: Recipe) -> Iterator[Finding]:
    for metric, text in (recipe.gates or {}).items():
        try:
            parse_gate(metric, text)
        except ValueError as error:
            yield ("gates", metric), str(error)


@_rule("training.eval_strategy", "training.save_strategy", "training.lr_scheduler_type", "gates", "data.eval")
def _needs_evaluation(recipe: Recipe) -> Iterator[Finding]:
    training = recipe.training
    if training.eval_strategy != "no":
        return
    remedy = "needs evaluations; set `eval_strategy` to steps or epoch"
    if recipe.gates and recipe.data.eval is not None:
        yield ("gates",), remedy
    if training.save_strategy == "best":
        yield ("training", "save_strategy"), remedy
    if training.lr_scheduler_type in METRIC_SCHEDULERS:
        yield ("training", "lr_scheduler_type"), remedy


@_rule(
    "training.load_best_model_at_end",
    "training.eval_strategy",
    "training.save_strategy",
    "training.eval_steps",
    "training.save_steps",
    "training.logging_steps",
)
def _best_model(recipe: Recipe) -> Iterator[Finding]:
    training, key = recipe.training, ("training", "load_best_model_at_end")
    if not training.load_best_model_at_end or training.save_strategy == "best":
        return
    if training.eval_strategy == "no":
        yield key, "needs evaluations to know the best model; set `eval_strategy` to steps or epoch"
    elif training.save_strategy != training.eval_strategy:
        both = f"eval_strategy is {training.eval_strategy} and save_strategy {training.save_strategy}"
        yield key, f"needs a checkpoint of each evaluated model, but {both}; make them the same"
    elif training.eval_strategy == "steps" and not _multiple(training):
        steps = (
            f"save_steps ({training.save_steps:g}) is no multiple of eval_steps ({_eval_steps(training):g})"
        )
        yield key, f"needs a checkpoint of an evaluated model, but {steps}"


def _eval_steps(training: Training) -> float:
    return training.eval_steps if training.eval_steps is not None else training.logging_steps


def _multiple(training: Training) -> bool:
    """Whether each checkpoint's step is an evaluation's, both in steps or both as shares of all steps."""
    every, save = _eval_steps(training), training.save_steps
    ratio = save / every
    return (every < 1) == (save < 1) and ratio >= 1 and abs(ratio - round(ratio)) < 1e-9


@_rule(
    "training.early_stopping_patience",
    "training.early_stopping_threshold",
    "training.load_best_model_at_end",
)
def _early_stopping(recipe: Recipe) -> Iterator[Finding]:
    training = recipe.training
    if training.early_stopping_patience is None and training.early_stopping_threshold > 0:
        yield (
            ("training", "early_stopping_threshold"),
            "does nothing without `early_stopping_patience`; set that too",
        )
    if training.early_stopping_patience is not None and not training.load_best_model_at_end:
        yield ("training", "early_stopping_patience"), "needs `load_best_model_at_end: true`"


@_rule("training.loraplus_lr_ratio", "training.loraplus_lr_embedding")
def _loraplus(recipe: Recipe) -> Iterator[Finding]:
    training = recipe.training
    if training.loraplus_lr_embedding is not None and training.loraplus_lr_ratio is None:
        yield (
            ("training", "loraplus_lr_embedding"),
            "does nothing without `loraplus_lr_ratio`; set that too",
        )


@_rule("training.bf16", "training.fp16", "training.bf16_full_eval", "training.fp16_full_eval")
def _precision(recipe: Recipe) -> Iterator[Finding]:
    training = recipe.training
    if training.bf16 and training.fp16:
        yield ("training", "fp16"), "bf16 is on too; choose one of them"
    if training.bf16_full_eval and training.fp16_full_eval:
        yield ("training", "fp16_full_eval"), "bf16_full_eval is on too; choose one of them"


@_rule(
    "training.dataloader_num_workers",
    "training.dataloader_prefetch_factor",
    "training.dataloader_persistent_workers",
    "training.dataloader_multiprocessing_context",
)
def _workers(recipe: Recipe) -> Iterator[Finding]:
    if recipe.training.dataloader_num_workers > 0:
        return
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        if getattr(recipe.training, f"dataloader_{name}"):
            yield (
                ("training", f"dataloader_{name}"),
                "needs loading processes; set `dataloader_num_workers` above 0",
            )


@_rule(
    "training.gradient_checkpointing",
    "training.gradient_checkpointing_kwargs",
    "training.activation_checkpointing",
    "training.activation_checkpointing_kwargs",
)
def _checkpointing(recipe: Recipe) -> Iterator[Finding]:
    training = recipe.training
    for suffix in ("", "_kwargs"):
        older, newer = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        one, other = getattr(training, older), getattr(training, newer)
        if one is not None and other is not None and one != other:
            yield ("training", older), f"the older name of {newer}, which says otherwise; keep {newer}"
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        for key in getattr(training, name) or {}:
            if key not in CHECKPOINTING:
                yield ("training", name, key), f"is no argument of it; {did_you_mean(key, CHECKPOINTING)}"


@_rule("training.logging_steps", "training.eval_steps", "training.save_steps", "training.warmup_steps")
def _whole_steps(recipe: Recipe) -> Iterator[Finding]:
    for name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
        value = getattr(recipe.training, name)
        if value is not None and value > 1 and not float(value).is_integer():
            yield (
                ("training", name),
                f"must be a whole number of steps, or below 1 a share of all steps, not {value:g}",
            )


@_rule("training.max_steps")
def _some_steps(recipe: Recipe) -> Iterator[Finding]:
    if recipe.training.max_steps == 0:
        yield ("training", "max_steps"), "must be at least 1, or -1 to train as long as num_train_epochs says"


@_rule("training.optim")
def _optimizer(recipe: Recipe) -> Iterator[Finding]:
    name = recipe.training.optim
    if name in REFUSED_OPTIMIZERS:
        yield (
            ("training", "optim"),
            f"{name} is refused: {REFUSED_OPTIMIZERS[name]}; the default is adamw_torch_fused",
        )
    elif name not in OPTIMIZERS:
        yield ("training", "optim"), f"unknown optimizer '{name}'; {did_you_mean(name, OPTIMIZERS)}"


@_rule("training.lr_scheduler_type", "training.lr_scheduler_kwargs")
def _scheduler(recipe: Recipe) -> Iterator[Finding]:
    name = recipe.training.lr_scheduler_type
    if name not in SCHEDULERS:
        yield (
            ("training", "lr_scheduler_type"),
            f"unknown schedule '{name}'; {did_you_mean(name, SCHEDULERS)}",
        )
        return
    given = recipe.training.lr_scheduler_kwargs or {}
    key: KeyPath = ("training", "lr_scheduler_kwargs" if given else "lr_scheduler_type")
    if "min_lr" in name and ("min_lr" in given) == ("min_lr_rate" in given):
        yield (
            key,
            f"{name} needs one of min_lr and min_lr_rate, e.g. `lr_scheduler_kwargs: {{min_lr_rate: 0.1}}`",
        )
    if name == "warmup_stable_decay" and "num_decay_steps" not in given:
        yield key, f"{name} needs num_decay_steps, e.g. `lr_scheduler_kwargs: {{num_decay_steps: 100}}`"


@_rule("training.report_to")
def _trackers(recipe: Recipe) -> Iterator[Finding]:
    given: Any = recipe.training.report_to or []
    for name in [given] if isinstance(given, str) else given:
        if name not in TRACKERS:
            yield ("training", "report_to"), f"unknown tracker '{name}'; {did_you_mean(name, TRACKERS)}"
