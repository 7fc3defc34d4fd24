"""A resumed run is the run that never stopped; a checkpoint is whole or it is not used."""

import json
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftcli.errors import AdapterError, Interrupted, RecipeError
from peftcli.train.loop import train
from peftcli.train.state import Progress, checkpoints, find_checkpoint, rotate_checkpoints, write_checkpoint
from tests.train.tiny import Net, NextToken, Stream, difference, job, metrics, rows, said, trained

TIMES = ("tokens_per_second", "peak_memory_bytes")


class SignalAt(NextToken):
    """Sends this process signals during the forward pass of a micro-batch."""

    def __init__(self, at, *numbers):
        super().__init__()
        self.at, self.numbers = at, numbers

    def loss(self, model, batch, *, label_smoothing=0.0):
        if len(self.seen) == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().loss(model, batch, label_smoothing=label_smoothing)


def untimed(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


VARIANTS = {
    "epoch crossing": {"num_train_epochs": 3, "save_steps": 7},
    "accumulation": {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "save_steps": 6,
    },
    "end of an epoch": {"num_train_epochs": 3, "save_steps": 5},
    "sgd with momentum, cosine": {
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "save_steps": 7,
        "num_train_epochs": 3,
    },
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 7,
        "num_train_epochs": 3,
    },
    "greedy": {
        "lr_scheduler_type": "greedy",
        "lr_scheduler_kwargs": {"patience": 0, "min_lr": 1e-4, "smooth": True},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 7,
        "num_train_epochs": 3,
    },
    "adafactor, grouped": {
        "optim": "adafactor",
        "train_sampling_strategy": "group_by_length",
        "save_steps": 7,
        "num_train_epochs": 3,
    },
    "adagrad, neftune": {
        "optim": "adagrad",
        "neftune_noise_alpha": 5.0,
        "save_steps": 7,
        "num_train_epochs": 3,
    },
    "rare log lines": {"logging_steps": 4, "save_steps": 7, "num_train_epochs": 3},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_run_ends_in_the_bytes_of_the_run_that_never_stopped(tmp_path, settings):
    straight, resumed = Net(dropout=0.3), Net(dropout=0.3)
    common = {"save_strategy": "steps", **settings}
    train(job(tmp_path / "straight", model=straight, **common))
    train(job(tmp_path / "resumed", model=Net(dropout=0.3), **common))
    start = next(folder for _, folder in checkpoints(tmp_path / "resumed"))
    torch.manual_seed(99)
    outcome = train(job(tmp_path / "resumed", model=resumed, resume_from=start, **common))
    assert difference(trained(straight), trained(resumed)) == 0
    assert untimed(metrics(tmp_path / "straight")) == untimed(metrics(tmp_path / "resumed"))
    assert outcome.global_step == metrics(tmp_path / "straight")[-1]["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    straight, resumed = Net(dropout=0.3), Net(dropout=0.3)
    train(job(tmp_path / "straight", model=straight))
    with pytest.raises(
        Interrupted, match=r"after step 4, which is saved in .*checkpoint-4; go on with --resume"
    ) as e:
        train(job(tmp_path / "run", model=Net(dropout=0.3), task=SignalAt(3, number)))
    assert e.value.exit_status == 130
    start = find_checkpoint(tmp_path / "run")
    train(job(tmp_path / "run", model=resumed, resume_from=start))
    assert difference(trained(straight), trained(resumed)) == 0
    assert untimed(metrics(tmp_path / "straight")) == untimed(metrics(tmp_path / "run"))


def test_a_second_signal_stops_at_once(tmp_path):
    with pytest.raises(Interrupted, match="stopped at once"):
        train(job(tmp_path, task=SignalAt(3, signal.SIGINT, signal.SIGINT)))
    assert find_checkpoint(tmp_path) is None


def test_signals_do_what_they_did_before_once_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(job(tmp_path, max_steps=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_resumed_stream_goes_on_at_the_row_where_it_stopped(tmp_path):
    straight, resumed = Net(), Net()
    common = {"max_steps": 11, "save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": 2}
    train(job(tmp_path / "s", model=straight, train_rows=Stream(rows(30)), **common))
    start = tmp_path / "s" / "checkpoint-7"
    train(job(tmp_path / "r", model=resumed, train_rows=Stream(rows(30)), resume_from=start, **common))
    assert difference(trained(straight), trained(resumed)) == 0


def test_a_resumed_run_that_was_already_done_trains_no_further(tmp_path):
    model = Net()
    common = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    first = train(job(tmp_path, model=model, **common))
    again = train(job(tmp_path, model=Net(), resume_from=find_checkpoint(tmp_path), **common))
    assert (again.global_step, again.last_eval) == (first.global_step, first.last_eval)
    assert again.train_loss == first.train_loss


def test_metrics_beyond_the_checkpoint_are_cut_off(tmp_path):
    common = {"save_strategy": "steps", "save_steps": 4}
    train(job(tmp_path, **common))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # as a killed run leaves it
    train(job(tmp_path, model=Net(), resume_from=tmp_path / "checkpoint-4", **common))
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))


def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    torn = tmp_path / "checkpoint-10" / "training_state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    lines = []
    assert find_checkpoint(tmp_path, lines.append) == tmp_path / "checkpoint-5"
    assert "checkpoint-10 is torn (training_state.safetensors has changed" in lines[0]
    with pytest.raises(AdapterError, match="checkpoint-10 is torn"):
        train(job(tmp_path, resume_from=tmp_path / "checkpoint-10"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trainer_state.json", "manifest.json"])
def test_a_checkpoint_that_lost_a_file_is_torn(tmp_path, name):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    (tmp_path / "checkpoint-10" / name).unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_a_checkpoint_that_cannot_be_written_leaves_none_behind(tmp_path):
    def fails(folder):
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, Progress(global_step=3), None, fails)
    assert find_checkpoint(tmp_path) is None
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-5",
        "metrics.jsonl",
    ]


def test_a_checkpoint_of_the_model_alone_cannot_be_resumed(tmp_path):
    train(job(tmp_path, save_strategy="steps", save_steps=5, save_only_model=True))
    with pytest.raises(AdapterError, match="holds the model alone"):
        train(job(tmp_path, resume_from=tmp_path / "checkpoint-10"))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    files = sorted(path.name for path in (tmp_path / "checkpoint-10").iterdir())
    assert files == [
        "adapter_model.safetensors",
        "manifest.json",
        "trainer_state.json",
        "training_state.json",
        "training_state.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"per_device_train_batch_size": 2}, "rows of a micro-batch"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"train_rows": rows(21)}, "rows was 20 and is 21"),
        ({"seed": 1}, "data_seed"),
        ({"optim": "sgd"}, "optim"),
    ],
)
def test_a_run_with_other_batches_is_not_resumed(tmp_path, change, name):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    with pytest.raises(RecipeError, match=name):
        train(job(tmp_path, resume_from=tmp_path / "checkpoint-5", **change))


def test_another_model_is_not_resumed(tmp_path):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    model = Net()
    model.up.bias.requires_grad_(requires_grad=False)
    with pytest.raises(RecipeError, match="optimizer is not this one"):
        train(job(tmp_path, model=model, resume_from=tmp_path / "checkpoint-5"))


def test_the_best_and_the_last_checkpoint_outlive_the_limit(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write_checkpoint(tmp_path, Progress(global_step=step), None, lambda folder: None)
    gone = rotate_checkpoints(tmp_path, 2, tmp_path / "checkpoint-2")
    assert [path.name for path in gone] == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 5]
    assert rotate_checkpoints(tmp_path, None, None) == []


@given(
    steps=st.lists(st.integers(1, 99), min_size=1, max_size=8, unique=True),
    keep=st.integers(1, 4),
    best=st.integers(0, 7),
    data=st.data(),
)
def test_whatever_the_limit_the_newest_and_the_best_checkpoint_stay(steps, keep, best, data):
    """The newest was just written: where all others are torn it is the only whole one."""
    steps.sort()
    with TemporaryDirectory() as name:
        folder = Path(name)
        for step in steps:
            write_checkpoint(folder, Progress(global_step=step), None, lambda folder: None)
        for step in data.draw(st.lists(st.sampled_from(steps), unique=True)):
            if step != steps[-1]:
                (folder / f"checkpoint-{step}" / "manifest.json").unlink()
        best_step = steps[best % len(steps)]
        rotate_checkpoints(folder, keep, folder / f"checkpoint-{best_step}")
        left = [step for step, _ in checkpoints(folder)]
        assert {steps[-1], best_step} <= set(left)
        assert len(left) <= max(keep, len({steps[-1], best_step}))
        assert find_checkpoint(folder) == folder / f"checkpoint-{steps[-1]}"


def test_going_on_is_said(tmp_path):
    train(job(tmp_path, save_strategy="steps", save_steps=5))
    made = job(tmp_path, resume_from=tmp_path / "checkpoint-5")
    train(made)
    assert "going on from" in said(made)
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["global_step"] == 10
    assert state["epoch"] == 2
