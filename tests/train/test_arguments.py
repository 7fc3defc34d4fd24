"""Every field of the recipe's `training` has an effect: a test each, and none without a test.

What only a GPU or a service would show is shown on the object that the field configures.
"""

import datetime as dt
import io
import logging
from types import SimpleNamespace

import pydantic
import pytest
import torch
import transformers
from rich.console import Console

from peftcli.data.example import Pair
from peftcli.errors import DivergedError, RecipeError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.recipe.schema import Recipe
from peftcli.recipe.training import Training
from peftcli.run.lock import Lock
from peftcli.tasks.seq2seq import SequenceToSequence
from peftcli.train import step
from peftcli.train.feed import MapFeed, pins_memory
from peftcli.train.loop import train
from peftcli.train.model import trained_model
from peftcli.train.optim import build_optimizer
from peftcli.train.process import ddp_options, group_options, log_level, speaks, training_process
from peftcli.train.sampler import Deal
from tests.bases import ending_tokenizer, tiny_mt5
from tests.train.tiny import (
    Net,
    NextToken,
    Scripted,
    difference,
    job,
    llama,
    losses,
    metrics,
    rates,
    rows,
    scripted,
    settings,
    trained,
)

EFFECTS = {}


def effect_of(*fields):
    """Registers a test as the proof that these fields have an effect."""

    def register(test):
        for field in fields:
            assert field not in EFFECTS, f"two tests for {field}"
            EFFECTS[field] = test
        return test

    return register


def steps_with(folder, key):
    return [line["step"] for line in metrics(folder) if key in line]


def saved(folder):
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def seen(tmp_path, **changes):
    """The batches that the model was trained on."""
    made = job(tmp_path, num_train_epochs=1, **changes)
    train(made)
    return made.task.seen


class Spy(NextToken):
    """Notes what the loop has set while it trains and evaluates."""

    def __init__(self, look):
        super().__init__()
        self.look, self.noted = look, []

    def loss(self, model, batch, *, label_smoothing=0.0):
        self.noted.append(self.look(model, batch))
        return super().loss(model, batch, label_smoothing=label_smoothing)

    def metrics(self, model, batch):
        self.noted.append(self.look(model, batch))
        return super().metrics(model, batch)


def noted(tmp_path, look, **changes):
    spy = Spy(look)
    train(job(tmp_path, task=spy, max_steps=1, **changes))
    return spy.noted


def output_type(model, batch):
    return model(input_ids=batch["input_ids"]).dtype


# How long, and in which batches.


@effect_of("num_train_epochs")
def test_num_train_epochs(tmp_path):
    assert train(job(tmp_path, num_train_epochs=3)).global_step == 15


@effect_of("max_steps")
def test_max_steps_beats_epochs(tmp_path):
    assert train(job(tmp_path, max_steps=7, num_train_epochs=1)).global_step == 7


@effect_of("per_device_train_batch_size")
def test_per_device_train_batch_size(tmp_path):
    assert [len(batch) for batch in seen(tmp_path, per_device_train_batch_size=8)] == [8, 8, 4]


@effect_of("gradient_accumulation_steps")
def test_gradient_accumulation_steps(tmp_path):
    made = job(tmp_path, num_train_epochs=1, gradient_accumulation_steps=2)
    assert train(made).global_step == 3
    assert len(made.task.seen) == 5


@effect_of("train_sampling_strategy")
def test_train_sampling_strategy(tmp_path):
    def order(strategy):
        batches = seen(tmp_path / strategy, train_sampling_strategy=strategy, per_device_train_batch_size=1)
        return [batch[0] for batch in batches]

    given = [row["input_ids"] for row in rows(20)]
    random, sequential, grouped = order("random"), order("sequential"), order("group_by_length")
    assert sequential == given
    assert random != given
    assert sorted(random) == sorted(grouped) == sorted(given)
    assert len(grouped[0]) == max(map(len, given))


@effect_of("dataloader_drop_last")
def test_dataloader_drop_last(tmp_path):
    assert [len(batch) for batch in seen(tmp_path, train_rows=rows(10), dataloader_drop_last=True)] == [4, 4]


@effect_of(
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)
def test_dataloader_options_reach_the_loader():
    given = settings(
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=5,
        dataloader_multiprocessing_context="spawn",
    )
    loader = MapFeed(rows(8), NextToken(), given, Deal(4), pin=False).loader
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (2, True, 5)
    assert loader.multiprocessing_context.get_start_method() == "spawn"


@effect_of("dataloader_pin_memory")
def test_dataloader_pin_memory():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert pins_memory(settings(), cuda)
    assert not pins_memory(settings(dataloader_pin_memory=False), cuda)
    assert not pins_memory(settings(), cpu)


# The optimizer and its schedule.


@effect_of("learning_rate")
def test_learning_rate(tmp_path):
    train(job(tmp_path, learning_rate=0.01))
    assert rates(tmp_path)[0] == 0.01


def embedding_lora():
    """A tiny Llama with LoRA adapters, one on its embeddings."""
    torch.manual_seed(0)
    return get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "embed_tokens"]))


@effect_of("loraplus_lr_ratio", "loraplus_lr_embedding")
def test_loraplus_trains_b_faster_than_a_and_embeddings_at_their_own_rate(tmp_path):
    moved = {}
    for ratio, embedding in ((None, None), (4, None), (4, 0.01)):
        model, folder = embedding_lora(), tmp_path / f"{ratio} {embedding}"
        before = trained(model)
        common = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.02}
        train(job(folder, model=model, loraplus_lr_ratio=ratio, loraplus_lr_embedding=embedding, **common))
        moved[ratio, embedding] = {name: after - before[name] for name, after in trained(model).items()}
        assert rates(folder) == [0.02]
    plain = moved.pop((None, None))
    for (ratio, embedding), others in moved.items():
        for name, way in others.items():
            embedded = (1e-6 if embedding is None else embedding) / 0.02
            factor = embedded if "lora_embedding" in name else ratio if "lora_B" in name else 1
            torch.testing.assert_close(way, plain[name] * factor, rtol=1e-4, atol=1e-7)


def test_loraplus_is_refused_where_the_adapter_has_no_b():
    with pytest.raises(RecipeError, match=r"training.loraplus_lr_ratio: .* this adapter has no lora_B"):
        build_optimizer(Net(), settings(loraplus_lr_ratio=16))


@effect_of("lr_scheduler_type")
def test_lr_scheduler_type(tmp_path):
    train(job(tmp_path, lr_scheduler_type="constant"))
    assert set(rates(tmp_path)) == {0.05}


@effect_of("lr_scheduler_kwargs")
def test_lr_scheduler_kwargs(tmp_path):
    train(job(tmp_path, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 0.04}))
    assert min(rates(tmp_path)) > 0.04


@effect_of("warmup_steps")
@pytest.mark.parametrize("warmup", [5, 0.5])
def test_warmup_steps(tmp_path, warmup):
    train(job(tmp_path, warmup_steps=warmup))
    assert rates(tmp_path)[:6] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04, 0.05])


@effect_of("optim")
def test_optim():
    assert isinstance(build_optimizer(Net(), settings(optim="sgd")), torch.optim.SGD)


@effect_of("optim_args")
def test_optim_args():
    optimizer = build_optimizer(Net(), settings(optim="sgd", optim_args="momentum=0.9, nesterov=true"))
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)


@effect_of("weight_decay")
def test_weight_decay():
    groups = build_optimizer(Net(), settings(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@effect_of("adam_beta1", "adam_beta2", "adam_epsilon")
def test_adam_numbers():
    given = settings(adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=1e-3)
    defaults = build_optimizer(Net(), given).defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.5, 0.6), 1e-3)


@effect_of("max_grad_norm")
def test_max_grad_norm(tmp_path):
    def moved(limit):
        model = Net()
        train(
            job(
                tmp_path / str(limit),
                model=model,
                optim="sgd",
                max_steps=1,
                learning_rate=1.0,
                max_grad_norm=limit,
            )
        )
        return sum(float((part - old).square().sum()) for part, old in pairs(model)) ** 0.5

    def pairs(model):
        return [(trained(model)[name], old) for name, old in trained(Net()).items()]

    norm = metrics(tmp_path / "0")[0]["grad_norm"] if moved(0) else None
    assert norm > 0.2
    assert moved(0) == pytest.approx(norm, rel=1e-4)
    assert moved(0.1) == pytest.approx(0.1, rel=1e-4)
    assert metrics(tmp_path / "0.1")[0]["grad_norm"] == pytest.approx(norm)


@effect_of("label_smoothing_factor")
def test_label_smoothing_factor(tmp_path):
    train(job(tmp_path / "0"))
    train(job(tmp_path / "1", label_smoothing_factor=0.3))
    assert losses(tmp_path / "0")[0] != losses(tmp_path / "1")[0]


@effect_of("neftune_noise_alpha")
def test_neftune_noise_is_added_in_training_alone(tmp_path):
    model = Net()
    clean = model.embed(torch.tensor([[1, 2]]))

    def look(network, batch):
        return torch.equal(network.embed(torch.tensor([[1, 2]])), clean), network.training

    found = noted(tmp_path, look, model=model, neftune_noise_alpha=5.0, eval_on_start=True)
    assert set(found) == {(False, True), (True, False)}


# Precision, memory and the device.


@effect_of("bf16")
def test_bf16(tmp_path):
    assert set(noted(tmp_path, output_type, bf16=True)) == {torch.bfloat16}


@effect_of("fp16")
def test_fp16_is_refused_without_a_gpu(tmp_path):
    with pytest.raises(RecipeError, match="fp16 needs a CUDA device"):
        train(job(tmp_path, fp16=True))


@effect_of("bf16_full_eval", "fp16_full_eval")
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_full_eval_types(tmp_path, kind):
    found = noted(tmp_path, output_type, eval_on_start=True, **{f"{kind}_full_eval": True})
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    assert found == [half, half, torch.float32][-len(found) :]
    assert half in found


@effect_of("tf32")
def test_tf32(tmp_path):
    before = torch.backends.fp32_precision
    assert noted(tmp_path, lambda *_: torch.backends.fp32_precision, tf32=False) == ["ieee"]
    assert torch.backends.fp32_precision == before
    with pytest.raises(RecipeError, match="Ampere"):
        train(job(tmp_path, tf32=True))


def layer_runs(tmp_path, **changes):
    """How often the first decoder layer began to run in one step, and the weights after it."""
    model, runs = llama(), []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    train(job(tmp_path, model=model, max_steps=1, **changes))
    return len(runs), trained(model)


@effect_of("activation_checkpointing", "gradient_checkpointing")
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activation_checkpointing_recomputes_and_changes_no_gradient(tmp_path, name):
    runs, plain = layer_runs(tmp_path / "plain")
    again, checkpointed = layer_runs(tmp_path / "checkpointed", **{name: True})
    assert (runs, again) == (1, 2)
    assert difference(plain, checkpointed) == 0
    assert difference(plain, trained(llama())) > 0


@effect_of("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activation_checkpointing_kwargs(tmp_path, name):
    changes = {name: True, f"{name}_kwargs": {"every_n_layers": 3, "use_reentrant": True}}
    model = llama()
    with (
        training_process(settings(), tmp_path) as accelerator,
        trained_model(model, accelerator, settings(**changes)),
    ):
        options = model.model.layers[0]._gradient_checkpointing_func.keywords
        flags = [layer.gradient_checkpointing for layer in model.model.layers]
    assert options == {"use_reentrant": True}
    assert flags == [True, False]
    with pytest.raises(RecipeError, match="do nothing without"):
        train(job(tmp_path, model=llama(), **{f"{name}_kwargs": {"use_reentrant": True}}))


# PyTorch's own compiler still uses what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@effect_of("torch_compile", "torch_compile_backend", "torch_compile_mode")
def test_torch_compile(tmp_path):
    def stepped(**changes):
        with (
            training_process(settings(), tmp_path) as accelerator,
            trained_model(Net(), accelerator, settings(**changes)) as model,
        ):
            return model.stepped

    kinds = [
        {"torch_compile": True},
        {"torch_compile_backend": "aot_eager"},
        {"torch_compile_mode": "max-autotune"},
    ]
    assert not hasattr(stepped(), "_orig_mod")
    assert all(hasattr(stepped(**kind), "_orig_mod") for kind in kinds)
    with pytest.raises(
        RecipeError, match="torch_compile_backend: unknown 'inductr'; did you mean 'inductor'"
    ):
        stepped(torch_compile_backend="inductr")
    with pytest.raises(RecipeError, match="torch_compile_mode"):
        stepped(torch_compile_mode="fastest")


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_weights(tmp_path):
    plain, compiled = Net(), Net()
    train(job(tmp_path / "plain", model=plain))
    train(job(tmp_path / "compiled", model=compiled, torch_compile_backend="eager"))
    assert difference(trained(plain), trained(compiled)) < 1e-6


@effect_of("torch_empty_cache_steps")
def test_torch_empty_cache_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(step, "clear_device_cache", lambda: calls.append(1))
    train(job(tmp_path, torch_empty_cache_steps=3))
    assert len(calls) == 3


@effect_of("use_cpu")
def test_use_cpu(tmp_path):
    with training_process(settings(), tmp_path) as accelerator:
        assert accelerator.device.type == "cpu"
        assert accelerator.state._cpu
    there = torch.accelerator.is_available()
    with training_process(Training(output_dir="runs"), tmp_path) as accelerator:
        assert accelerator.state._cpu is not there


# Seeds.


@effect_of("seed")
def test_seed_decides_dropout(tmp_path):
    def after(seed):
        model = Net(dropout=0.5)
        train(job(tmp_path / str(seed), model=model, seed=seed, data_seed=0))
        return trained(model)

    assert difference(after(1), after(2)) > 0


@effect_of("data_seed")
def test_data_seed_decides_the_order(tmp_path):
    assert seen(tmp_path, data_seed=5) == seen(tmp_path, seed=5)
    assert seen(tmp_path, data_seed=5) != seen(tmp_path, data_seed=6)


@effect_of("full_determinism")
def test_full_determinism(tmp_path):
    assert noted(
        tmp_path, lambda *_: torch.are_deterministic_algorithms_enabled(), full_determinism=True
    ) == [True]
    assert not torch.are_deterministic_algorithms_enabled()


# What is said, when.


@effect_of("logging_strategy")
@pytest.mark.parametrize(("strategy", "steps"), [("no", []), ("epoch", [5, 10])])
def test_logging_strategy(tmp_path, strategy, steps):
    train(job(tmp_path, logging_strategy=strategy))
    assert steps_with(tmp_path, "loss") == steps


@effect_of("logging_steps")
@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8, 10]), (0.3, [3, 6, 9, 10])])
def test_logging_steps(tmp_path, every, steps):
    train(job(tmp_path, logging_steps=every))
    assert steps_with(tmp_path, "loss") == steps


@effect_of("logging_first_step")
def test_logging_first_step(tmp_path):
    train(job(tmp_path, logging_steps=4, logging_first_step=True))
    assert steps_with(tmp_path, "loss") == [1, 4, 8, 10]


SECOND_MACHINE = SimpleNamespace(is_local_main_process=True, is_main_process=False)
SECOND_PROCESS = SimpleNamespace(is_local_main_process=False, is_main_process=False)


@effect_of("log_on_each_node")
def test_log_on_each_node():
    assert speaks(settings(), SECOND_MACHINE)
    assert not speaks(settings(log_on_each_node=False), SECOND_MACHINE)
    assert not speaks(settings(), SECOND_PROCESS)


@effect_of("log_level")
def test_log_level(tmp_path):
    def levels(*_):
        return transformers.logging.get_verbosity(), logging.getLogger("peftcli").level

    before = levels()
    assert noted(tmp_path, levels, log_level="info") == [(logging.INFO, logging.INFO)]
    assert levels() == before
    assert noted(tmp_path, levels) == [before]


@effect_of("log_level_replica")
def test_log_level_replica():
    assert log_level(settings(log_level_replica="error"), SECOND_PROCESS) == logging.ERROR
    assert log_level(settings(), SECOND_PROCESS) == logging.WARNING


@effect_of("disable_tqdm")
def test_disable_tqdm(tmp_path):
    def shown(name, **changes):
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        train(job(tmp_path / name, console=console, **changes))
        return "━" in console.file.getvalue()

    assert shown("bar")
    assert not shown("none", disable_tqdm=True)


@effect_of("include_num_input_tokens_seen")
def test_include_num_input_tokens_seen(tmp_path):
    def last(kind):
        train(job(tmp_path / kind, include_num_input_tokens_seen=kind, num_train_epochs=1))
        return metrics(tmp_path / kind)[-1].get("num_input_tokens_seen")

    batches = seen(tmp_path)
    assert last("all") == sum(len(batch) * len(batch[0]) for batch in batches)
    assert last("non_padding") == sum(rows(20).lengths)
    assert last("no") is None


@effect_of("report_to", "run_name", "project")
def test_tensorboard_gets_every_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"report_to": "tensorboard", "run_name": "first", "project": "ours", "eval_strategy": "epoch"}
    train(job(tmp_path, num_train_epochs=1, **changes))
    events = EventAccumulator(str(tmp_path / "runs" / "first" / "ours"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path))
    assert [event.step for event in events.Scalars("eval_loss")] == [5]


def test_a_tracker_that_is_not_installed_is_refused_before_training(tmp_path):
    made = job(tmp_path, report_to=["tensorboard", "wandb"])
    with pytest.raises(RecipeError, match="wandb is not installed; run `pip install wandb`"):
        train(made)
    assert made.task.seen == []


# Evaluation.


@effect_of("eval_strategy")
@pytest.mark.parametrize(
    ("strategy", "steps"), [("no", []), ("epoch", [5, 10]), ("steps", list(range(1, 11)))]
)
def test_eval_strategy(tmp_path, strategy, steps):
    train(job(tmp_path, eval_strategy=strategy))
    assert steps_with(tmp_path, "eval_loss") == steps


@effect_of("eval_steps")
@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8, 10]), (0.5, [5, 10])])
def test_eval_steps(tmp_path, every, steps):
    train(job(tmp_path, eval_strategy="steps", eval_steps=every))
    assert steps_with(tmp_path, "eval_loss") == steps


@effect_of("eval_delay")
@pytest.mark.parametrize(("strategy", "delay", "steps"), [("steps", 8, [8, 9, 10]), ("epoch", 1.5, [10])])
def test_eval_delay(tmp_path, strategy, delay, steps):
    train(job(tmp_path, eval_strategy=strategy, eval_delay=delay))
    assert steps_with(tmp_path, "eval_loss") == steps


@effect_of("eval_on_start")
def test_eval_on_start(tmp_path):
    train(job(tmp_path, eval_on_start=True))
    assert steps_with(tmp_path, "eval_loss") == [0]


@effect_of("per_device_eval_batch_size")
def test_per_device_eval_batch_size(tmp_path):
    sizes = noted(
        tmp_path, lambda _, batch: len(batch["labels"]), eval_on_start=True, per_device_eval_batch_size=3
    )
    assert sizes == [3, 3, 1, 4]  # seven rows to evaluate, then a training step


@effect_of("prediction_loss_only")
def test_prediction_loss_only(tmp_path):
    outcome = train(job(tmp_path, eval_strategy="epoch", prediction_loss_only=True))
    assert list(outcome.last_eval) == ["eval_loss"]


def evaluated_pair(**changes):
    """What an evaluation of one pair finds, and the GenerationConfigs that it was generated with."""
    recipe = Recipe.model_validate(
        {
            "base_model": "base",
            "task_type": "SEQ_2_SEQ_LM",
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "unused.jsonl"}},
            "training": {"output_dir": "out", **changes},
        }
    )
    model = tiny_mt5()
    task = SequenceToSequence(recipe, ending_tokenizer(), model.config)
    configs, generate = [], model.generate
    model.generate = lambda **given: configs.append(given["generation_config"]) or generate(**given)
    with torch.no_grad():
        found = task.metrics(model, task.collate(task.encode([Pair("ab", "ba")])[0]))
    return found, configs


@effect_of("predict_with_generate")
def test_predict_with_generate():
    plain, configs = evaluated_pair()
    assert (plain.records, configs) == ([], [])
    found, (config,) = evaluated_pair(predict_with_generate=True)
    assert [target for _, target in found.records] == ["ba"]
    assert (config.max_length, config.do_sample, config.num_beams) == (257, False, None)


@effect_of("generation_max_length", "generation_num_beams")
def test_generation_max_length_and_num_beams():
    settings = {"generation_max_length": 5, "generation_num_beams": 3}
    _, (config,) = evaluated_pair(predict_with_generate=True, **settings)
    assert (config.max_length, config.num_beams) == (5, 3)


# What is kept.


@effect_of("save_strategy")
@pytest.mark.parametrize(("strategy", "steps"), [("no", []), ("epoch", [5, 10]), ("best", [1, 3])])
def test_save_strategy(tmp_path, strategy, steps):
    if strategy == "best":
        scripted(tmp_path, 3.0, 4.0, 2.0, 2.5, save_strategy=strategy)
    else:
        train(job(tmp_path, save_strategy=strategy))
    assert saved(tmp_path) == steps


@effect_of("save_steps")
@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8, 10]), (0.5, [5, 10])])
def test_save_steps(tmp_path, every, steps):
    train(job(tmp_path, save_strategy="steps", save_steps=every))
    assert saved(tmp_path) == steps


@effect_of("save_total_limit")
def test_save_total_limit_never_deletes_the_best(tmp_path):
    outcome, _ = scripted(
        tmp_path, 3.0, 1.0, 2.0, 2.5, 2.6, save_strategy="steps", save_steps=1, save_total_limit=2,
        metric_for_best_model="loss",
    )  # fmt: skip
    assert saved(tmp_path) == [2, 5]
    assert outcome.best_checkpoint == tmp_path / "checkpoint-2"


@effect_of("save_only_model")
def test_save_only_model(tmp_path):
    train(job(tmp_path, save_strategy="epoch", save_only_model=True))
    assert not list(tmp_path.glob("checkpoint-*/training_state*"))


@effect_of("load_best_model_at_end")
def test_load_best_model_at_end(tmp_path):
    from safetensors.torch import load_file

    common = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    outcome, made = scripted(tmp_path, 3.0, 1.0, 2.0, **common)
    best = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    last = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    assert difference(trained(made.model), best) == 0
    assert difference(trained(made.model), last) > 0
    assert (outcome.best_metric, outcome.best_checkpoint) == (1.0, tmp_path / "checkpoint-2")
    assert "took the weights of the best checkpoint" in made.console.file.getvalue()


@effect_of("metric_for_best_model", "greater_is_better")
@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({"metric_for_best_model": "loss"}, 2),
        ({"metric_for_best_model": "eval_loss"}, 2),
        ({"metric_for_best_model": "accuracy"}, 2),
        ({"metric_for_best_model": "accuracy", "greater_is_better": False}, 1),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, 1),
    ],
)
def test_metric_for_best_model(tmp_path, changes, best):
    # A metric other than the loss is looked for in one batch before training.
    first = [9.0] if changes["metric_for_best_model"] == "accuracy" else []
    made = job(
        tmp_path,
        task=Scripted(*first, 3.0, 1.0, 2.0),
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        **changes,
    )
    assert train(made).best_checkpoint == tmp_path / f"checkpoint-{best}"


def test_a_metric_that_is_not_there_is_refused_before_training(tmp_path):
    made = job(tmp_path, eval_strategy="epoch", metric_for_best_model="accurracy")
    with pytest.raises(RecipeError, match="there is no 'eval_accurracy'; did you mean 'eval_accuracy'"):
        train(made)
    assert made.task.seen == []


@effect_of("early_stopping_patience")
def test_early_stopping_patience(tmp_path):
    outcome, made = scripted(tmp_path, 3.0, 2.0, 2.5, 2.4, 1.0, early_stopping_patience=2)
    assert outcome.global_step == 4
    assert "stopping early" in made.console.file.getvalue()


@effect_of("early_stopping_threshold")
def test_early_stopping_threshold(tmp_path):
    changes = {"early_stopping_patience": 2, "early_stopping_threshold": 0.5}
    outcome, _ = scripted(tmp_path, 3.0, 2.0, 1.9, 1.8, 1.0, **changes)
    assert outcome.global_step == 4


# Several processes; test_distributed.py trains with two.


@effect_of("average_tokens_across_devices")
def test_tokens_are_always_averaged_across_devices():
    with pytest.raises(pydantic.ValidationError):
        settings(average_tokens_across_devices=False)


@effect_of("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")
def test_ddp_options():
    given = {
        "find_unused_parameters": True,
        "bucket_cap_mb": 7,
        "broadcast_buffers": False,
        "static_graph": True,
    }
    made = ddp_options(settings(**{f"ddp_{name}": value for name, value in given.items()}))
    assert made.to_kwargs() == given
    assert ddp_options(settings()).to_kwargs() == {}


@effect_of("ddp_backend", "ddp_timeout")
def test_process_group_options(monkeypatch):
    assert group_options(settings(ddp_backend="gloo")).backend is None  # one process has no group
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = group_options(settings(ddp_backend="gloo", ddp_timeout=60))
    assert (made.backend, made.timeout) == ("gloo", dt.timedelta(seconds=60))


# The folder.


def claim(folder, **changes):
    """Makes the folder of a run ready, as `peftcli train` does."""
    from peftcli.run.claim import begin, check_folder, held

    check_folder(recipe(folder, **changes), resume=False, say=print)
    with held(folder):
        begin(folder, Lock({}, {}, {}, {}), None, print)


def recipe(folder, **changes):
    return Recipe(
        base_model="tiny",
        task_type="CAUSAL_LM",
        adapter={"peft_type": "LORA"},
        data={"train": {"path": "rows.jsonl"}},
        training={"output_dir": str(folder), **changes},
    )


class NeverFinite(NextToken):
    def loss(self, model, batch, *, label_smoothing=0.0):
        total, count = super().loss(model, batch, label_smoothing=label_smoothing)
        return total * torch.nan, count


@effect_of("on_nonfinite")
def test_on_nonfinite(tmp_path):
    """What else it does is in test_nonfinite.py."""
    with pytest.raises(DivergedError):
        train(job(tmp_path, task=NeverFinite(), max_steps=2))
    assert train(job(tmp_path, task=NeverFinite(), max_steps=2, on_nonfinite="skip")).global_step == 2


@effect_of("output_dir")
def test_output_dir(tmp_path):
    claim(tmp_path / "a" / "run")
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["recipe.lock.yaml"]


@effect_of("overwrite_output_dir")
def test_overwrite_output_dir(tmp_path):
    train(job(tmp_path, save_strategy="epoch"))
    with pytest.raises(RecipeError, match="already holds a run"):
        claim(tmp_path)
    claim(tmp_path, overwrite_output_dir=True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.lock.yaml"]


def test_every_field_has_a_test_of_its_effect():
    assert set(EFFECTS) == set(Training.model_fields)
