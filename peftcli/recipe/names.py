"""Transformers' names that a recipe may say, without importing it: a test compares them with its enums."""

from __future__ import annotations

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
)

# Schedulers that lower the rate when the evaluated metric stops getting better.
METRIC_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")

TORCH_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")

# They come with the extra `quantization` (bitsandbytes).
BITSANDBYTES_OPTIMIZERS = (
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)

OPTIMIZERS = (*TORCH_OPTIMIZERS, *BITSANDBYTES_OPTIMIZERS)

_FULL = "it saves memory for full weight matrices; an adapter's matrices have a low rank already"
_LOMO = "it updates full weights inside the backward pass, without gradient accumulation"
_TORCHAO = "it needs torchao, which is not among peftcli's packages"
_PACKAGE = "it needs a package that is not among peftcli's"

REFUSED_OPTIMIZERS = {
    "adamw_torch_xla": "TPUs are not supported",
    "adamw_torch_npu_fused": "Ascend NPUs are not supported",
    "adamw_anyprecision": _PACKAGE,
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "galore_adamw": _FULL,
    "galore_adamw_8bit": _FULL,
    "galore_adafactor": _FULL,
    "galore_adamw_layerwise": _FULL,
    "galore_adamw_8bit_layerwise": _FULL,
    "galore_adafactor_layerwise": _FULL,
    "apollo_adamw": _FULL,
    "apollo_adamw_layerwise": _FULL,
    "lomo": _LOMO,
    "adalomo": _LOMO,
    "grokadamw": _PACKAGE,
    "schedule_free_radam": _PACKAGE,
    "schedule_free_adamw": _PACKAGE,
    "schedule_free_sgd": _PACKAGE,
    "stable_adamw": _PACKAGE,
}

# What Accelerate can report to, and the two words that Transformers has for all and for none of them.
TRACKERS = (
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
    "all",
    "none",
)

# The fields of transformers.BitsAndBytesConfig with what each takes.
QUANTIZATION: dict[str, type | tuple[type, ...]] = {
    "load_in_8bit": bool,
    "load_in_4bit": bool,
    "llm_int8_threshold": (int, float),
    "llm_int8_skip_modules": list,
    "llm_int8_enable_fp32_cpu_offload": bool,
    "llm_int8_has_fp16_weight": bool,
    "bnb_4bit_compute_dtype": str,
    "bnb_4bit_quant_type": str,
    "bnb_4bit_use_double_quant": bool,
    "bnb_4bit_quant_storage": str,
}

# The arguments of torch.utils.checkpoint.checkpoint that a recipe can write, and two that Transformers adds.
CHECKPOINTING = (
    "use_reentrant",
    "preserve_rng_state",
    "determinism_check",
    "debug",
    "early_stop",
    "every_n_layers",
    "offload",
)
