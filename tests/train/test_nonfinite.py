"""A loss or gradient that is NaN or infinite: the run stops with what was good kept, or passes the step over."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import DivergedError
from peftcli.train.loop import train
from peftcli.train.state import find_checkpoint
from tests.train.tiny import Net, NextToken, Rows, difference, job, metrics, rows, said, trained


class Poisoned(NextToken):
    """Its loss is NaN in these optimizer steps (of one micro-batch each)."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def loss(self, model, batch, *, label_smoothing=0.0):
        total, count = super().loss(model, batch, label_smoothing=label_smoothing)
        return (total * torch.nan if len(self.seen) in self.steps else total), count


class Placed(Rows):
    """Rows that know their places."""

    def places(self, index):
        return [f"rows.jsonl: row {index + 1}"]


def test_the_run_stops_with_the_rows_of_the_step_and_the_state_before_it(tmp_path):
    whole = Net()
    train(job(tmp_path / "two", model=whole, max_steps=2, lr_scheduler_type="constant"))
    model = Net()
    stopped = job(
        tmp_path / "run",
        model=model,
        task=Poisoned(3),
        train_rows=Placed(rows(20)),
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
    )
    with pytest.raises(DivergedError, match="at step 3") as error:
        train(stopped)
    assert "its rows: rows.jsonl: row 9, rows.jsonl: row 10, rows.jsonl: row 11, rows.jsonl: row 12" in str(
        error.value
    )
    assert f"the last good state is in {tmp_path / 'run' / 'checkpoint-2'}" in str(error.value)
    assert error.value.exit_status == 5
    assert find_checkpoint(tmp_path / "run").name == "checkpoint-2"
    assert all(value.isfinite().all() for value in trained(model).values())


def test_a_run_that_diverges_at_once_says_that_there_is_nothing_good(tmp_path):
    with pytest.raises(DivergedError, match="no good state was saved before it"):
        train(job(tmp_path, task=Poisoned(1)))


def test_a_step_is_passed_over_where_the_recipe_says_so_and_counted(tmp_path):
    model = Net()
    made = job(
        tmp_path,
        model=model,
        task=Poisoned(2, 5),
        train_rows=Placed(rows(20)),
        train_sampling_strategy="sequential",
        on_nonfinite="skip",
        num_train_epochs=2,
    )
    outcome = train(made)
    assert outcome.global_step == 10
    assert [line.get("skipped_steps", 0) for line in metrics(tmp_path) if "loss" in line] == [
        0, 1, 1, 1, 2, 2, 2, 2, 2, 2,
    ]  # fmt: skip
    assert "step 2 was skipped: its loss or gradient is NaN or infinite; its rows: rows.jsonl: row 5" in said(
        made
    )
    assert all(value.isfinite().all() for value in trained(model).values())
    assert torch.isfinite(torch.tensor(outcome.train_loss))


def test_a_skipped_step_changes_no_weight(tmp_path):
    options = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    one, two = Net(), Net()
    train(job(tmp_path / "one", model=one, max_steps=1, **options))
    train(job(tmp_path / "two", model=two, max_steps=2, task=Poisoned(2), on_nonfinite="skip", **options))
    assert difference(trained(one), trained(two)) == 0


def test_twenty_skipped_steps_in_a_row_end_the_run(tmp_path):
    with pytest.raises(DivergedError, match="20 steps in a row were skipped"):
        train(job(tmp_path, task=Poisoned(*range(3, 99)), on_nonfinite="skip", num_train_epochs=9))
