"""Rules between keys: what is refused, and what is not."""

import pytest

EVALUATED = "training.eval_strategy=epoch"

REFUSED = [
    (["task_type=CASUAL_LM"], "task_type", "did you mean 'CAUSAL_LM'?"),
    (
        ["task_type=TEXT_TO_IMAGE", "adapter={peft_type: LOHA}"],
        "adapter.peft_type",
        "TEXT_TO_IMAGE cannot be trained with LOHA; choose LORA",
    ),
    (
        ["task_type=TEXT_TO_IMAGE", "adapter.use_dora=true"],
        "adapter.use_dora",
        "is not for TEXT_TO_IMAGE: diffusers' file of LoRA weights has no place for it",
    ),
    (
        ["task_type=TEXT_TO_IMAGE", "quantization.load_in_4bit=true"],
        "quantization",
        "has no meaning for TEXT_TO_IMAGE",
    ),
    (
        ["task_type=TEXT_TO_IMAGE", "training.neftune_noise_alpha=5"],
        "training.neftune_noise_alpha",
        "has no meaning for TEXT_TO_IMAGE",
    ),
    (
        ["task_type=TEXT_TO_IMAGE", "task.with_prior_preservation=true", "task.class_prompt=a dog"],
        "task.with_prior_preservation",
        "needs class_data_dir",
    ),
    (
        ["task_type=TEXT_TO_IMAGE", "task.num_class_images=7"],
        "task.num_class_images",
        "does nothing without with_prior_preservation: true",
    ),
    (
        ["task_type=SEQ_CLS", "task.lables=[a, b]"],
        "task.lables",
        "no option of SEQ_CLS; did you mean 'labels'?",
    ),
    (["task.labels=[a, b]"], "task.labels", "is no option of CAUSAL_LM; it has none"),
    (["task_type=SEQ_CLS", "task.labels=[]"], "task.labels", "must be at least one"),
    (["task_type=SEQ_CLS", "data.packing=true"], "data.packing", "has no meaning for SEQ_CLS"),
    (
        ["task_type=SEQ_CLS", "data.train={path: x, type: chat}"],
        "data.train.type",
        "'chat' is not for SEQ_CLS; use one of: classification",
    ),
    (
        ["training.predict_with_generate=true"],
        "training.predict_with_generate",
        "has no meaning for CAUSAL_LM; leave it out",
    ),
    (
        [
            "task_type=SEQ_2_SEQ_LM",
            "training.predict_with_generate=true",
            "training.prediction_loss_only=true",
        ],
        "training.predict_with_generate",
        "prediction_loss_only is on too",
    ),
    (
        ["task_type=SEQ_2_SEQ_LM", "training.generation_num_beams=2"],
        "training.generation_num_beams",
        "does nothing without `predict_with_generate: true`",
    ),
    (["data.streaming=true"], "data.streaming", "training.max_steps"),
    (["data.streaming=true", "training.max_steps=9", "data.eval=0.1"], "data.eval", "its own source"),
    (
        ["data.streaming=true", "training.max_steps=9", "training.train_sampling_strategy=group_by_length"],
        "training.train_sampling_strategy",
        "random or sequential",
    ),
    (["training.eval_strategy=epoch"], "training.eval_strategy", "set `data.eval`"),
    (["training.eval_on_start=true"], "training.eval_on_start", "set `data.eval`"),
    (["gates.eval_loss=< 1"], "gates", "set `data.eval`"),
    (["data.eval=0.1", "gates.eval_loss=< 1"], "gates", "needs evaluations"),
    (
        [EVALUATED, "data.eval=0.1", "gates.eval_loss=about 1"],
        "gates.eval_loss",
        "must be a comparison with a number",
    ),
    (
        ["training.use_cpu=true", "quantization={load_in_4bit: true}"],
        "training.use_cpu",
        "needs its accelerator",
    ),
    (
        [
            "data.streaming=true",
            "training.max_steps=3",
            "training.dataloader_num_workers=1",
            "training.dataloader_persistent_workers=true",
        ],
        "training.dataloader_persistent_workers",
        "starts anew",
    ),
    (
        ["data.streaming=true", "training.max_steps=3", "training.dataloader_num_workers=2"],
        "training.dataloader_num_workers",
        "read by one process",
    ),
    (
        [EVALUATED, "data.eval=0.1", "gates.eval_loss==< 1"],
        "gates.eval_loss",
        "must be a comparison with a number",
    ),
    (["training.save_strategy=best"], "training.save_strategy", "needs evaluations"),
    (
        ["training.loraplus_lr_embedding=1e-5"],
        "training.loraplus_lr_embedding",
        "does nothing without `loraplus_lr_ratio`",
    ),
    (["training.lr_scheduler_type=greedy"], "training.lr_scheduler_type", "needs evaluations"),
    (["training.load_best_model_at_end=true"], "training.load_best_model_at_end", "needs evaluations"),
    (
        ["data.eval=0.1", "training.eval_strategy=epoch", "training.load_best_model_at_end=true"],
        "training.load_best_model_at_end",
        "eval_strategy is epoch and save_strategy steps; make them the same",
    ),
    (
        [
            "data.eval=0.1",
            "training.eval_strategy=steps",
            "training.eval_steps=20",
            "training.save_steps=30",
            "training.load_best_model_at_end=true",
        ],
        "training.load_best_model_at_end",
        "save_steps (30) is no multiple of eval_steps (20)",
    ),
    (
        [
            "data.eval=0.1",
            "training.eval_strategy=steps",
            "training.eval_steps=0.1",
            "training.save_steps=30",
            "training.load_best_model_at_end=true",
        ],
        "training.load_best_model_at_end",
        "save_steps (30) is no multiple of eval_steps (0.1)",
    ),
    (["training.early_stopping_patience=2"], "training.early_stopping_patience", "load_best_model_at_end"),
    (
        ["training.early_stopping_threshold=0.1"],
        "training.early_stopping_threshold",
        "early_stopping_patience",
    ),
    (["training.bf16=true", "training.fp16=true"], "training.fp16", "choose one"),
    (
        ["training.bf16_full_eval=true", "training.fp16_full_eval=true"],
        "training.fp16_full_eval",
        "choose one",
    ),
    (
        ["training.dataloader_prefetch_factor=2"],
        "training.dataloader_prefetch_factor",
        "dataloader_num_workers",
    ),
    (
        ["training.dataloader_persistent_workers=true"],
        "training.dataloader_persistent_workers",
        "dataloader_num_workers",
    ),
    (
        ["training.gradient_checkpointing=true", "training.activation_checkpointing=false"],
        "training.gradient_checkpointing",
        "keep activation_checkpointing",
    ),
    (["training.logging_steps=1.5"], "training.logging_steps", "a whole number of steps"),
    (["training.warmup_steps=2.5"], "training.warmup_steps", "a whole number of steps"),
    (["adapter.eva_config={rho: 2.0}"], "adapter.eva_config", "does nothing without init_lora_weights: eva"),
    (["training.max_steps=0"], "training.max_steps", "at least 1, or -1"),
    (["training.optim=adamw"], "training.optim", "unknown optimizer 'adamw'; did you mean"),
    (["training.optim=lomo"], "training.optim", "is refused: it updates full weights"),
    (["training.optim=adamw_torch_8bit"], "training.optim", "torchao"),
    (["training.lr_scheduler_type=cosin"], "training.lr_scheduler_type", "did you mean 'cosine'?"),
    (["training.lr_scheduler_type=cosine_with_min_lr"], "training.lr_scheduler_type", "min_lr_rate"),
    (["training.lr_scheduler_type=warmup_stable_decay"], "training.lr_scheduler_type", "num_decay_steps"),
    (["training.report_to=[tensorboard, wandbb]"], "training.report_to", "did you mean 'wandb'?"),
    (["data.train.type=alpaca"], "data.train.type", "unknown format 'alpaca'"),
    (["data.train.type=chat", "data.overflow=split"], "data.overflow", "`split` is for rows of type text"),
    (["quantization.load_in_4bit=true", "quantization.load_in_8bit=true"], "quantization", "exactly one"),
    (["quantization={}"], "quantization", "exactly one"),
    (["quantization.load_in_4bit=yes"], "quantization.load_in_4bit", "must be true or false"),
    (
        ["quantization.load_in_4bit=true", "quantization.bnb_4bit_quant_typ=nf4"],
        "quantization.bnb_4bit_quant_typ",
        "did you mean 'bnb_4bit_quant_type'?",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "message"), REFUSED)
def test_what_does_not_go_together_is_refused_at_the_key_to_change(problems, overrides, key, message):
    (line,) = problems(*overrides)
    assert f"{key}: " in line
    assert message in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.streaming=true", "training.max_steps=9", "data.eval.path=held-out.jsonl"],
        ["data.eval=0.1", "training.eval_strategy=epoch", "training.save_strategy=best"],
        [
            "data.eval=0.1",
            "training.eval_strategy=steps",
            "training.eval_steps=0.1",
            "training.save_steps=0.3",
            "training.load_best_model_at_end=true",
            "training.early_stopping_patience=2",
        ],
        [
            EVALUATED,
            "data.eval=0.1",
            "gates.eval_loss=< 1.2",
            "gates.eval_accuracy=>= .8",
            "gates.eval_x=== 1e-3",
        ],
        ["training.dataloader_num_workers=1", "training.dataloader_prefetch_factor=2"],
        ["training.gradient_checkpointing=true", "training.activation_checkpointing=true"],
        ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr: 1e-6}"],
        [
            "training.report_to=[tensorboard, wandb]",
            "training.logging_steps=0.05",
            "training.warmup_steps=0.1",
        ],
        ["data.train.type=text", "data.overflow=split", "data.max_length=64"],
        ["quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}", "training.optim=paged_adamw_8bit"],
        ["adapter.task_type=CAUSAL_LM"],
    ],
)
def test_what_goes_together_is_accepted(read, overrides):
    read(*overrides)
