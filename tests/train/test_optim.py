"""Optimizers and schedules by their names, against Transformers' own choices."""

import math

import pytest
import torch
from transformers import Trainer
from transformers.trainer_utils import SchedulerType

from peftcli.errors import RecipeError
from peftcli.recipe.names import BITSANDBYTES_OPTIMIZERS, OPTIMIZERS, TORCH_OPTIMIZERS
from peftcli.recipe.training import Training
from peftcli.train import optim
from peftcli.train.loop import train
from peftcli.train.optim import build_optimizer, parameter_groups, parse_optim_args
from peftcli.train.schedule import build_scheduler, warmup_steps
from tests.train.tiny import Net, difference, job, llama, losses, rates, scripted, trained


def settings(**changes):
    return Training(output_dir="runs", learning_rate=0.1, **changes)


def test_every_optimizer_that_a_recipe_may_name_is_there():
    assert set(optim.OPTIMIZERS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_and_resumes_exactly(tmp_path, name):
    straight, resumed = Net(), Net()
    common = {"optim": name, "learning_rate": 0.5 if name == "sgd" else 0.03, "save_strategy": "epoch"}
    train(job(tmp_path, model=straight, **common))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    train(job(tmp_path / "again", model=resumed, resume_from=tmp_path / "checkpoint-5", **common))
    assert difference(trained(straight), trained(resumed)) == 0


def test_fused_adamw_is_fused():
    assert build_optimizer(Net(), settings(optim="adamw_torch_fused")).defaults["fused"]
    assert not build_optimizer(Net(), settings(optim="adamw_torch")).defaults["fused"]


def test_adafactor_takes_the_recipes_learning_rate():
    defaults = build_optimizer(Net(), settings(optim="adafactor")).defaults
    assert (defaults["lr"], defaults["scale_parameter"], defaults["relative_step"]) == (0.1, False, False)


@pytest.mark.parametrize("name", BITSANDBYTES_OPTIMIZERS)
def test_an_optimizer_of_bitsandbytes_names_its_extra_where_it_is_missing(name, monkeypatch):
    monkeypatch.setattr(optim, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match=r"install peftcli\[quantization\]"):
        build_optimizer(Net(), settings(optim=name))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adamw_8bit", "AdamW", {"optim_bits": 8, "is_paged": False, "betas": (0.9, 0.999), "eps": 1e-8}),
        (
            "paged_adamw_32bit",
            "AdamW",
            {"optim_bits": 32, "is_paged": True, "betas": (0.9, 0.999), "eps": 1e-8},
        ),
        ("lion_8bit", "Lion", {"optim_bits": 8, "is_paged": False, "betas": (0.9, 0.999)}),
        ("rmsprop_bnb_8bit", "RMSprop", {"optim_bits": 8}),
        (
            "paged_ademamix_8bit",
            "AdEMAMix",
            {"optim_bits": 8, "is_paged": True, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "eps": 1e-8},
        ),
    ],
)
def test_an_optimizer_of_bitsandbytes_gets_its_bits(name, kind, expected):
    choice = optim.OPTIMIZERS[name]
    assert choice.where == f"bitsandbytes.optim:{kind}"
    assert choice.arguments(settings()) | dict(choice.fixed) == expected


def test_an_optimizer_that_we_do_not_have_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="unknown optimizer 'adamw_torc'; did you mean 'adamw_torch'"):
        build_optimizer(Net(), settings(optim="adamw_torc"))


def test_optim_args_are_typed():
    found = parse_optim_args("a=1, b=0.5,c=true,d=none,e=word,f=1e-3")
    assert found == {"a": 1, "b": 0.5, "c": True, "d": None, "e": "word", "f": 1e-3}
    assert parse_optim_args(None) == parse_optim_args("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentum", "'momentum' is not name=value"),
        ("=1", "'=1' is not name=value"),
        ("momentum=0.9,momentum=0.8", "given twice"),
        ("momntum=0.9", "takes no 'momntum'; did you mean 'momentum'"),
        ("momentum=-1", "refuses its arguments: Invalid momentum value"),
        ("weight_decay=0.1", "set weight_decay as training.weight_decay"),
    ],
)
def test_wrong_optim_args_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        build_optimizer(Net(), settings(optim="sgd", optim_args=text))


def test_betas_can_be_given_one_by_one():
    defaults = build_optimizer(Net(), settings(optim="adamw_torch", optim_args="beta2=0.5")).defaults
    assert defaults["betas"] == (0.9, 0.5)


@pytest.mark.parametrize("make", [Net, llama])
def test_the_parameters_that_decay_are_those_of_transformers(make):
    model = make().requires_grad_()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = parameter_groups(model, 0.1)
    expected = set(Trainer.get_decay_parameter_names(None, model))
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert {names[id(parameter)] for parameter in spared["params"]} == set(names.values()) - expected


ARGUMENTS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "cosine_with_restarts": {"num_cycles": 2},
}


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_of_transformers_can_be_had(tmp_path, name):
    common = {"lr_scheduler_type": name, "lr_scheduler_kwargs": ARGUMENTS.get(name)}
    train(job(tmp_path, eval_strategy="epoch", **common))
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "linaer"}, "unknown schedule 'linaer'; did you mean 'linear'"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "cosine: .*'cycles'"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 2}}, "constant takes no arguments"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, "constant has no warmup"),
        ({"lr_scheduler_type": "greedy", "warmup_steps": 2}, "greedy has no warmup"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 2}},
            "Factor should be",
        ),
    ],
)
def test_a_schedule_that_cannot_be_had_is_refused_in_one_line(changes, message):
    given = settings(**changes)
    with pytest.raises(RecipeError, match=message) as error:
        build_scheduler(build_optimizer(Net(), given), given, 10)
    assert len(error.value.lines()) == 1


@pytest.mark.parametrize(("given", "steps"), [(0, 0), (0.05, 5), (0.055, 6), (1, 1), (7, 7)])
def test_warmup_below_one_is_a_share_of_all_steps(given, steps):
    assert warmup_steps(settings(warmup_steps=given), 100) == steps


def test_a_plateau_of_the_metric_lowers_the_learning_rate(tmp_path):
    changes = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
    }
    scripted(tmp_path, 3.0, 3.5, 2.0, 2.0, **changes)
    assert rates(tmp_path) == [0.05, 0.05, 0.025, 0.025]


def test_a_plateau_of_a_metric_that_should_grow_is_seen_as_such(tmp_path):
    given = settings(lr_scheduler_type="reduce_lr_on_plateau")
    optimizer = build_optimizer(Net(), given)
    assert build_scheduler(optimizer, given, 10, greater_is_better=True).state_dict()["mode"] == "max"
    assert build_scheduler(optimizer, given, 10).state_dict()["mode"] == "min"


def test_the_first_loss_scale_of_fp16_is_for_a_sum_over_tokens(tmp_path):
    """A sum over 1,000 tokens under a scale of 2^6 has the gradients of a mean under 2^16."""
    from accelerate.utils import GradScalerKwargs

    from peftcli.train.process import loss_scale

    assert loss_scale(1.0) == GradScalerKwargs().init_scale
    assert loss_scale(1000.0) == 2.0**6
    assert math.log2(loss_scale(123.4)).is_integer()
    assert torch.amp.GradScaler("cpu", init_scale=loss_scale(1e9)).get_scale() > 0
