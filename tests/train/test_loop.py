"""The loop's laws: a step is its rows, however they are split; what is written is what happened."""

import math

import pytest
import torch

from peftcli.errors import DataError, DivergedError, MemoryLimitError, RecipeError
from peftcli.train.loop import train
from tests.train.tiny import (
    Net,
    NextToken,
    Rows,
    Stream,
    difference,
    job,
    losses,
    metrics,
    rows,
    said,
    trained,
)

KEYS = [
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "peak_memory_bytes",
]


def token_losses(model, batch):
    task = NextToken()
    return task.loss(model, task.collate(batch))


@torch.no_grad()
def mean_loss(model, batch):
    total, count = token_losses(model.eval(), batch)
    return float(total / count), int(count)


@pytest.mark.parametrize(("size", "steps"), [(4, 2), (2, 4), (1, 8)])
def test_a_global_batch_gives_the_same_weights_however_it_is_split(tmp_path, size, steps):
    whole, split = Net(), Net()
    train(job(tmp_path / "whole", model=whole, per_device_train_batch_size=8))
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    train(job(tmp_path / "split", model=split, **settings))
    assert difference(trained(whole), trained(Net())) > 0.05
    assert difference(trained(whole), trained(split)) < 1e-6
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "split"))


def test_training_equals_plain_pytorch_written_out(tmp_path):
    ours, plain = Net(), Net()
    data = rows(12)
    train(
        job(
            tmp_path,
            model=ours,
            train_rows=data,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            optim="sgd",
            lr_scheduler_type="constant",
            gradient_accumulation_steps=2,
        )
    )
    optimizer = torch.optim.SGD([each for each in plain.parameters() if each.requires_grad], lr=0.05)
    for window in (data[:8], data[8:]):
        total, count = token_losses(plain, window)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    assert difference(trained(ours), trained(plain)) < 1e-6


def test_an_incomplete_last_window_of_an_epoch_makes_a_step(tmp_path):
    outcome = train(job(tmp_path, num_train_epochs=1, gradient_accumulation_steps=3))
    assert outcome.global_step == 2  # 5 micro-batches: 3 and 2
    assert outcome.epoch == 1.0


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1.5, 8), (2, 10)])
def test_a_fraction_of_an_epoch_trains_that_share_of_its_steps_rounded_up(tmp_path, epochs, steps):
    assert train(job(tmp_path, num_train_epochs=epochs)).global_step == steps


def test_the_logged_loss_is_the_mean_over_the_tokens_since_the_last_line(tmp_path):
    model = Net()
    settings = {"learning_rate": 1e-12, "num_train_epochs": 1, "logging_steps": 5}
    outcome = train(job(tmp_path, model=model, **settings))
    mean, count = mean_loss(model, rows(20))
    assert losses(tmp_path) == pytest.approx([mean], rel=1e-6)
    assert outcome.train_loss == pytest.approx(mean, rel=1e-6)
    assert outcome.tokens == count


def test_metrics_lines_have_the_keys_of_the_contract(tmp_path):
    train(job(tmp_path, eval_strategy="epoch"))
    lines = metrics(tmp_path)
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [list(line) for line in training] == [KEYS] * 10
    assert [line["step"] for line in training] == list(range(1, 11))
    assert training[4]["epoch"] == 1.0
    assert all(line["tokens_per_second"] > 0 and line["peak_memory_bytes"] > 2**20 for line in training)
    assert [line["step"] for line in evaluations] == [5, 10]
    assert list(evaluations[0]) == ["step", "epoch", "eval_loss", "eval_accuracy"]


def test_an_evaluation_is_the_mean_over_all_trained_tokens(tmp_path):
    model = Net()
    outcome = train(job(tmp_path, model=model, eval_strategy="epoch", per_device_eval_batch_size=3))
    assert outcome.last_eval["eval_loss"] == pytest.approx(mean_loss(model, rows(7, seed=2))[0])
    assert 0 <= outcome.last_eval["eval_accuracy"] <= 1


def test_a_streamed_data_set_trains_as_the_same_rows_in_order_do(tmp_path):
    streamed, listed = Net(), Net()
    train(job(tmp_path / "s", model=streamed, train_rows=Stream(rows(18)), max_steps=9))
    settings = {"train_sampling_strategy": "sequential", "max_steps": 9}
    train(job(tmp_path / "l", model=listed, train_rows=rows(18), **settings))
    assert difference(trained(streamed), trained(listed)) == 0


def test_a_stream_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        train(job(tmp_path, train_rows=Stream(Rows()), max_steps=2))


def test_a_stream_without_max_steps_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="max_steps"):
        train(job(tmp_path, train_rows=Stream(rows(4))))


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(tmp_path):
    model = Net()
    with pytest.raises(DivergedError, match=r"at step \d+; lower training.learning_rate") as error:
        train(job(tmp_path, model=model, learning_rate=1e30, optim="sgd", max_grad_norm=0))
    assert error.value.exit_status == 5
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


def test_an_infinite_gradient_leaves_the_weights_as_they_were(tmp_path):
    class Steep(NextToken):
        def loss(self, model, batch, *, label_smoothing=0.0):
            total, count = super().loss(model, batch, label_smoothing=label_smoothing)
            return total + (model.down.weight.sum() * 0).sqrt(), count  # d sqrt(x) at 0 is infinite

    model = Net()
    with pytest.raises(DivergedError, match="at step 1;"):
        train(job(tmp_path, model=model, task=Steep()))
    assert difference(trained(model), trained(Net())) == 0


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_says_what_to_change(tmp_path, error):
    class Hungry(NextToken):
        def loss(self, model, batch, *, label_smoothing=0.0):
            raise error

    with pytest.raises(
        MemoryLimitError, match="per_device_train_batch_size: 2 with gradient_accumulation_steps: 2"
    ):
        train(job(tmp_path, task=Hungry()))


def test_out_of_memory_in_an_evaluation_says_what_to_change_there(tmp_path):
    class Hungry(NextToken):
        def metrics(self, model, batch):
            raise MemoryError

    with pytest.raises(MemoryLimitError) as error:
        train(job(tmp_path, task=Hungry(), eval_strategy="epoch", per_device_eval_batch_size=6))
    assert str(error.value) == (
        "out of memory in an evaluation; try training.per_device_eval_batch_size: 3 (it is 6), or shorter rows "
        "(data.max_length)"
    )


def test_the_cpu_allocator_running_out_is_an_out_of_memory_error(tmp_path):
    class Huge(NextToken):
        def loss(self, model, batch, *, label_smoothing=0.0):
            torch.empty(2**60)
            raise AssertionError

    with pytest.raises(MemoryLimitError):
        train(job(tmp_path, task=Huge()))


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="nothing to train"):
        train(job(tmp_path, model=Net().requires_grad_(requires_grad=False)))


def test_the_model_is_left_as_it_was_found(tmp_path):
    model = Net(dropout=0.1).eval()
    train(job(tmp_path, model=model, neftune_noise_alpha=5.0))
    assert not model.training
    assert not model.embed._forward_hooks


def test_plain_lines_are_printed_away_from_a_terminal(tmp_path):
    made = job(tmp_path, eval_strategy="epoch", num_train_epochs=1)
    train(made)
    lines = said(made).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("step 1/5 · epoch 0.20 · loss 3.")
    assert "tokens/s" in lines[0]
    assert "MiB" in lines[0]
    assert lines[5].startswith("evaluation at step 5 · eval_loss")


def test_a_progress_bar_is_shown_on_a_terminal(tmp_path):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    train(job(tmp_path, console=console))
    text = console.file.getvalue()
    assert "10/10" in text
    assert "\x1b[" in text


def test_two_runs_with_one_seed_give_the_same_bytes(tmp_path):
    one, other = Net(dropout=0.3), Net(dropout=0.3)
    train(job(tmp_path / "1", model=one))
    train(job(tmp_path / "2", model=other))
    assert difference(trained(one), trained(other)) == 0
