"""What a run says and keeps at its end, and what it refuses at its start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.errors import DataError, DivergedError, RecipeError
from peftcli.train.failures import FiniteWatch
from peftcli.train.feed import StreamFeed
from peftcli.train.loop import train
from peftcli.train.model import trained_model
from peftcli.train.process import training_process
from peftcli.train.sampler import Deal
from peftcli.train.state import find_checkpoint
from tests.train.tiny import Net, NextToken, job, llama, rows, scripted, settings


def test_the_metrics_at_the_end_are_those_of_the_weights_that_are_left(tmp_path):
    best, _ = scripted(
        tmp_path / "best", 3.0, 1.0, 2.0, save_strategy="steps", save_steps=1, load_best_model_at_end=True
    )
    assert best.last_eval["eval_loss"] == 1.0
    last, _ = scripted(tmp_path / "last", 3.0, 1.0, 2.0)
    assert last.last_eval["eval_loss"] == 2.0


def test_a_gated_metric_that_is_not_evaluated_is_refused_before_the_first_step(tmp_path):
    made = job(tmp_path, eval_strategy="epoch", gated=("eval_acuracy",))
    with pytest.raises(RecipeError, match=r"gates\.eval_acuracy: .*did you mean 'eval_accuracy'"):
        train(made)
    assert made.task.seen == []


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"weight_decay": 0.5}, {"adam_beta1": 0.5}])
def test_a_resumed_run_refuses_what_the_saved_states_would_put_back(tmp_path, change):
    first = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 0.01}
    train(job(tmp_path, **first))
    with pytest.raises(RecipeError, match=f"cannot be resumed so: {next(iter(change))} was"):
        train(job(tmp_path, **(first | {"max_steps": 6} | change), resume_from=find_checkpoint(tmp_path)))


class Broken:
    """A stream whose third row cannot be read."""

    def rows(self, epoch):
        yield from rows(2)
        raise DataError("broken JSON", where="rows.jsonl, row 3")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_is_one_line_whichever_process_reads_it(workers):
    given = settings(max_steps=9, dataloader_num_workers=workers)
    feed = StreamFeed(Broken(), NextToken(), given, Deal(2), pin=False)
    with pytest.raises(DataError) as error:
        list(feed.epoch(0, 0))
    assert str(error.value) == "rows.jsonl, row 3: broken JSON"


def test_the_embeddings_hook_of_activation_checkpointing_is_gone_afterwards(tmp_path):
    base = llama()
    base.requires_grad_(requires_grad=False)
    base.lm_head.requires_grad_()
    given = settings(activation_checkpointing=True)
    with training_process(given, tmp_path) as accelerator:
        with trained_model(base, accelerator, given):
            assert base.get_input_embeddings()._forward_hooks
        assert not base.get_input_embeddings()._forward_hooks


def test_offloading_activations_to_the_cpu_they_are_on_is_refused(tmp_path):
    given = settings(activation_checkpointing=True, activation_checkpointing_kwargs={"offload": True})
    with (
        training_process(given, tmp_path) as accelerator,
        pytest.raises(RecipeError, match="there is no accelerator"),
        trained_model(llama(), accelerator, given),
    ):
        pass


def test_values_that_are_not_finite_are_seen_in_every_float_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        watch = FiniteWatch(settings(), torch.device("cpu"))
        watch.note(1, torch.ones((), dtype=dtype))
        with pytest.raises(DivergedError, match="at step 2"):
            watch.note(2, torch.full((), torch.nan, dtype=dtype))


def test_trained_half_precision_weights_are_widened_where_the_loss_is_scaled():
    from peftcli.train.model import _widen

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).half()
    model[0].requires_grad_(requires_grad=False)
    _widen(model)
    assert [parameter.dtype for parameter in model.parameters()] == [torch.float16] * 2 + [torch.float32] * 2


def test_a_loss_scale_that_only_ever_falls_is_a_divergence(tmp_path):
    from torch.amp import GradScaler

    from peftcli.train import step

    class Engine:
        settings = settings()
        accelerator = type("A", (), {"scaler": GradScaler("cpu", init_scale=2.0**-39)})()

    model = Net()
    Engine.optimizer = torch.optim.SGD([model.up.weight], lr=0.1)
    model.up.weight.grad = torch.full_like(model.up.weight, torch.inf)
    Engine.accelerator.scaler.scale(torch.zeros(()))  # makes its tensors
    Engine.accelerator.scaler.unscale_(Engine.optimizer)
    assert not step._update(Engine, 1)
    Engine.optimizer.zero_grad()
    model.up.weight.grad = torch.full_like(model.up.weight, torch.inf)
    Engine.accelerator.scaler.unscale_(Engine.optimizer)
    with pytest.raises(DivergedError, match="at step 2"):
        step._update(Engine, 2)
