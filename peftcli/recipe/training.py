"""The recipe's `training`: TrainingArguments' names, each honoured (`Training`) or refused (`REFUSED`).

Those of Seq2SeqTrainingArguments are among them. Nothing of `transformers` is imported here: it would bring torch
along. A test walks the installed class and fails on a field that stands in neither table, and on a default that has
drifted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no(value: Any) -> Any:
    """YAML 1.1 and what is derived from it read `no` as false."""
    return "no" if value is False else value


Strategy = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_no)]
SaveStrategy = Annotated[Literal["no", "steps", "epoch", "best"], BeforeValidator(_no)]


class Training(BaseModel):
    """How to train: the fields of `transformers.TrainingArguments` that we honour, with its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    output_dir: str = Field(min_length=1, description="the folder that the run writes")
    overwrite_output_dir: bool = Field(False, description="replace what an earlier run left in output_dir")

    # How long, and in which batches.
    num_train_epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps in all; -1: as num_train_epochs says")
    per_device_train_batch_size: int = Field(8, ge=1, description="rows in one forward pass on one device")
    gradient_accumulation_steps: int = Field(1, ge=1, description="forward passes for one optimizer step")
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = Field(
        "random", description="the order of rows; group_by_length puts rows of like length together"
    )
    dataloader_drop_last: bool = Field(False, description="leave out an epoch's last, incomplete batch")
    dataloader_num_workers: int = Field(0, ge=0, description="processes that load batches; 0: the main one")
    dataloader_pin_memory: bool = Field(True, description="page-locked batches, for faster copies to a GPU")
    dataloader_persistent_workers: bool = Field(
        False, description="keep the loading processes between epochs"
    )
    dataloader_prefetch_factor: int | None = Field(None, ge=1, description="batches each worker loads ahead")
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = Field(
        None, description="how loading processes start"
    )

    # The optimizer and its schedule.
    learning_rate: float = Field(5e-5, gt=0, description="the peak learning rate")
    lr_scheduler_type: str = Field("linear", description="a transformers.SchedulerType")
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="the scheduler's own arguments")
    warmup_steps: float = Field(
        0, ge=0, description="steps of rising learning rate; below 1: a share of all steps"
    )
    optim: str = Field("adamw_torch_fused", description="a transformers OptimizerNames value")
    optim_args: str | None = Field(None, description="the optimizer's own arguments, as k=v,k=v")
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+, arXiv:2402.12354: how many times faster B is trained than A"
    )
    loraplus_lr_embedding: float | None = Field(
        None, gt=0, description="LoRA+'s learning rate of adapters on embeddings; default: 1e-6"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay; never of biases and norms")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the running mean of gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the running mean of squared gradients")
    adam_epsilon: float = Field(1e-8, gt=0, description="keeps the optimizer's division stable")
    max_grad_norm: float = Field(1.0, ge=0, description="clip the gradient's norm; 0: do not clip")
    label_smoothing_factor: float = Field(
        0.0, ge=0, lt=1, description="share of the target's probability spread over all tokens"
    )
    neftune_noise_alpha: float | None = Field(None, gt=0, description="NEFTune, arXiv:2310.05914")

    # Precision, memory and the device.
    bf16: bool = Field(False, description="autocast to bfloat16")
    fp16: bool = Field(False, description="autocast to float16, with loss scaling")
    bf16_full_eval: bool = Field(False, description="evaluate under bfloat16 autocast")
    fp16_full_eval: bool = Field(False, description="evaluate under float16 autocast")
    tf32: bool | None = Field(None, description="allow TF32 matrix products on Ampere and newer")
    activation_checkpointing: bool | None = Field(
        None, description="recompute activations in the backward pass"
    )
    activation_checkpointing_kwargs: dict[str, Any] | None = Field(
        None, description="arguments of torch.utils.checkpoint, such as use_reentrant"
    )
    gradient_checkpointing: bool | None = Field(
        None, description="the older name of activation_checkpointing"
    )
    gradient_checkpointing_kwargs: dict[str, Any] | None = Field(
        None, description="the older name of activation_checkpointing_kwargs"
    )
    torch_compile: bool = Field(False, description="compile the model with torch.compile")
    torch_compile_backend: str | None = Field(None, description="the backend of torch.compile")
    torch_compile_mode: str | None = Field(None, description="the mode of torch.compile")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do at a step whose loss or gradient is NaN or infinite; skip leaves the weights as they "
        "are, counts it, and gives up after 20 in a row",
    )
    torch_empty_cache_steps: int | None = Field(
        None, ge=1, description="empty the device's cache every so many steps"
    )
    use_cpu: bool = Field(False, description="train on the CPU even where there is an accelerator")

    # Seeds.
    seed: int = Field(42, ge=0, lt=2**32, description="seed of initialisation, splits, dropout and order")
    data_seed: int | None = Field(None, ge=0, lt=2**32, description="seed of the data order; default: seed")
    full_determinism: bool = Field(False, description="deterministic kernels, at a cost in speed")

    # What is said, when.
    logging_strategy: Strategy = Field("steps", description="when a line is logged")
    logging_steps: float = Field(
        500, gt=0, description="steps between log lines; below 1: a share of all steps"
    )
    logging_first_step: bool = Field(False, description="log the first step too")
    log_on_each_node: bool = Field(True, description="with several machines: each logs, or only the first")
    log_level: Literal["debug", "info", "warning", "error", "critical", "passive"] = Field(
        "passive", description="how much Transformers and Datasets say"
    )
    log_level_replica: Literal["debug", "info", "warning", "error", "critical", "passive"] = Field(
        "warning", description="the same for the processes after the first"
    )
    disable_tqdm: bool | None = Field(None, description="no progress bar, even on a terminal")
    include_num_input_tokens_seen: bool | Literal["all", "non_padding", "no"] = Field(
        "no", description="count the tokens seen: all, or without padding"
    )
    report_to: str | list[str] | None = Field("none", description="trackers: tensorboard, wandb, mlflow, …")
    run_name: str | None = Field(None, description="the run's name in trackers")
    project: str = Field("huggingface", description="the project's name in trackers")

    # Evaluation.
    eval_strategy: Strategy = Field("no", description="when to evaluate")
    eval_steps: float | None = Field(None, gt=0, description="default: logging_steps")
    eval_delay: float = Field(0, ge=0, description="no evaluation before this step or epoch")
    eval_on_start: bool = Field(False, description="evaluate once before the first step")
    per_device_eval_batch_size: int = Field(
        8, ge=1, description="rows in one forward pass on one device when evaluating"
    )
    prediction_loss_only: bool = Field(False, description="evaluate the loss, no other metric")
    predict_with_generate: bool = Field(
        False, description="evaluate generated texts, too: slower, and what a user of the model sees"
    )
    generation_max_length: int | None = Field(
        None,
        ge=2,
        description="tokens of a text that an evaluation generates, with the one it starts from; default: the task's "
        "own limit of targets, else 256",
    )
    generation_num_beams: int | None = Field(
        None, ge=1, description="beams of an evaluation's search; default: the base's own"
    )

    # What is kept.
    save_strategy: SaveStrategy = Field(
        "steps", description="when to save a checkpoint; best: when the metric is the best yet"
    )
    save_steps: float = Field(
        500, gt=0, description="steps between checkpoints; below 1: a share of all steps"
    )
    save_total_limit: int | None = Field(None, ge=1, description="keep this many checkpoints, and the best")
    save_only_model: bool = Field(
        False, description="checkpoints without optimizer state: they cannot be resumed"
    )
    load_best_model_at_end: bool = Field(
        False, description="end with the best evaluated checkpoint's weights"
    )
    metric_for_best_model: str | None = Field(None, description="default: eval_loss")
    greater_is_better: bool | None = Field(None, description="default: false for losses, true otherwise")
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many evaluations without a better metric (EarlyStoppingCallback)",
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="how much better counts as better")

    # Several processes.
    average_tokens_across_devices: Literal[True] = Field(
        True, description="the loss is always weighted by trained tokens over the whole global batch"
    )
    ddp_find_unused_parameters: bool | None = Field(
        None, description="as DistributedDataParallel's find_unused_parameters"
    )
    ddp_bucket_cap_mb: int | None = Field(
        None, ge=1, description="as DistributedDataParallel's bucket_cap_mb"
    )
    ddp_broadcast_buffers: bool | None = Field(
        None, description="as DistributedDataParallel's broadcast_buffers"
    )
    ddp_static_graph: bool | None = Field(None, description="as DistributedDataParallel's static_graph")
    ddp_backend: str | None = Field(None, description="nccl, gloo, mpi, …")
    ddp_timeout: int = Field(1800, ge=1, description="seconds")

    @property
    def compiles(self) -> bool:
        """Whether the model is compiled: naming a backend or a mode says so, too, as in TrainingArguments."""
        return bool(self.torch_compile or self.torch_compile_backend or self.torch_compile_mode)


# Names that are not TrainingArguments': peftcli's own (arguments of EarlyStoppingCallback and of PEFT's LoRA+), and an
# older one.
OWN = (
    "overwrite_output_dir",
    "early_stopping_patience",
    "early_stopping_threshold",
    "loraplus_lr_ratio",
    "loraplus_lr_embedding",
    "on_nonfinite",
)

# Older names with today's: older.py translates them before the schema sees them. `warmup_ratio` becomes
# warmup_steps (a value below 1 is a share there), `group_by_length: true` becomes train_sampling_strategy.
OLDER = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "no_cuda": "use_cpu",
}

_COMMAND = "what to do is the command's: peftcli train, eval or predict"
_HUB = "training does not upload; run `peftcli push DIR ORG/NAME` when it is done"
_SHARD = "sharded training is not supported; an adapter's state is small: use DDP (`accelerate launch`)"
_TRACKIO = "set it in the tracker's own environment variables"
_COLLECT = "evaluation never collects logits: its metrics are computed as it goes"

REFUSED = {
    "accelerator_config": "the loop sets Accelerate up: batches are never split, dispatched or repeated",
    "auto_find_batch_size": "a size that changes by itself changes the run; lower the batch size",
    "batch_eval_metrics": _COLLECT,
    "dataloader_in_order": "batches always come in the sampler's order, or a resumed run could not go on at its row",
    "debug": "use `accelerate launch --debug` or py-spy",
    "deepspeed": _SHARD,
    "do_eval": _COMMAND,
    "do_predict": _COMMAND,
    "do_train": _COMMAND,
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always save a checkpoint",
    "eval_accumulation_steps": _COLLECT,
    "eval_do_concat_batches": _COLLECT,
    "eval_use_gather_object": _COLLECT,
    "fsdp": _SHARD,
    "fsdp_config": _SHARD,
    "generation_config": "an evaluation generates as the base's own config says; set generation_max_length and "
    "generation_num_beams",
    "hub_always_push": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "hub_token": "a token never belongs in a recipe; set HF_TOKEN",
    "ignore_data_skip": "a resumed run always goes on at the row where it stopped",
    "include_for_metrics": _COLLECT,
    "label_names": "labels are what the data's format says",
    "length_column_name": "lengths are counted from the tokens",
    "liger_kernel_config": "Liger kernels are not supported yet",
    "local_rank": "the launcher (`accelerate launch`, `torchrun`) sets it",
    "logging_nan_inf_filter": "a NaN or infinite loss stops the run with status 5; the log shows all",
    "optim_target_modules": "it belongs to GaLore and Apollo, which train full weights, not adapters",
    "parallelism_config": _SHARD,
    "push_to_hub": _HUB,
    "remove_unused_columns": "columns are read as data.train.columns says; others are never carried along",
    "restore_callback_states_from_checkpoint": "resuming always restores everything",
    "resume_from_checkpoint": "use `peftcli train RECIPE --resume [CHECKPOINT]`",
    "save_on_each_node": "checkpoints go to output_dir from the first process; it must be a shared folder",
    "skip_memory_metrics": "peak memory is always in metrics.jsonl; it costs nothing",
    "sortish_sampler": "set train_sampling_strategy to group_by_length; evaluations are always sorted",
    "trackio_bucket_id": _TRACKIO,
    "trackio_space_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    "use_cache": "training never keeps a key-value cache",
    "use_liger_kernel": "Liger kernels are not supported yet",
}
