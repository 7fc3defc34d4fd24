"""What a method adds to training, shown on AdaLoRA: a penalty, a step after the step, and a state to resume with."""

import json

import pytest
import torch

from peftcli.errors import AdapterError
from peftcli.peft.model import PeftModel
from peftcli.train.loop import train
from peftcli.train.state import checkpoints
from tests.train.tiny import NextToken, adalora, difference, job, llama, losses, rows, trained

SCHEDULE = {"tinit": 2, "tfinal": 4, "deltaT": 2, "lora_dropout": 0.2}
RUN = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.02}
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize("accumulated", [1, 2, 4])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_gradient_is_that_of_the_mean_loss_and_the_weighted_penalty(tmp_path, accumulated, weight):
    model, expected = (adalora(orth_reg_weight=weight, init_lora_weights=False) for _ in range(2))
    data = rows(8)
    total, tokens = NextToken().loss(expected, NextToken().collate(data))
    mean = total / tokens
    penalty = expected.base_model.penalty()
    (mean if penalty is None else mean + penalty).backward()
    before = trained(model)
    options = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0, "learning_rate": 0.1}
    size = {"per_device_train_batch_size": 8 // accumulated, "gradient_accumulation_steps": accumulated}
    train(job(tmp_path, model=model, train_rows=data, **options, **size))
    wanted = {name: before[name] - 0.1 * dict(expected.named_parameters())[name].grad for name in before}
    # The run's one step also prunes.
    for name in wanted:
        if "lora_E" in name:
            wanted[name] *= trained(model)[name] != 0
    assert difference(trained(model), wanted) < 1e-5
    assert losses(tmp_path) == [pytest.approx(float(mean.detach()), rel=1e-5)]


def test_ranks_go_down_over_the_run_to_the_target(tmp_path):
    model = adalora(**SCHEDULE)
    train(job(tmp_path, model=model, **RUN))
    config = model.peft_config["default"]
    assert config.total_step == 15
    assert sum(map(sum, config.rank_pattern.values())) == 2 * 4
    for step, settled in ((10, False), (11, True), (15, True)):
        written = json.loads((tmp_path / f"checkpoint-{step}" / "adapter_config.json").read_text())
        assert (written["rank_pattern"] is not None) == settled
        assert written["total_step"] == 15


@pytest.mark.parametrize("step", [1, 5, 10, 11, 13, 15])
def test_a_resumed_run_ends_in_the_bytes_of_the_run_that_never_stopped(tmp_path, step):
    straight, resumed = adalora(**SCHEDULE), adalora(**SCHEDULE)
    train(job(tmp_path / "straight", model=straight, **RUN))
    start = dict(checkpoints(tmp_path / "straight"))[step]
    torch.manual_seed(99)
    train(job(tmp_path / "resumed", model=resumed, resume_from=start, **RUN))
    assert difference(trained(straight), trained(resumed)) == 0
    for model, folder in ((straight, "a"), (resumed, "b")):
        model.save_pretrained(tmp_path / folder)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert losses(tmp_path / "straight")[step:] == losses(tmp_path / "resumed")[step:]


@pytest.mark.parametrize("best", [4, 12])
def test_the_best_checkpoint_is_taken_whether_or_not_its_ranks_were_settled(tmp_path, best):
    model = adalora(**SCHEDULE)
    train(job(tmp_path, model=model, **RUN))
    folder = tmp_path / f"checkpoint-{best}"
    job(tmp_path, model=model).load_adapter(folder)  # as the loop does at the end
    model.save_pretrained(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    ids = torch.tensor([[1, 2, 3, 4]])
    loaded = PeftModel.from_pretrained(llama(), folder)
    torch.testing.assert_close(model.eval()(ids).logits, loaded(ids).logits, rtol=0, atol=0)


def test_a_run_too_short_for_the_schedule_is_refused(tmp_path):
    with pytest.raises(
        AdapterError, match="tinit: with tfinal 4 it leaves no step of 6 for ranks to go down"
    ):
        train(job(tmp_path, model=adalora(**SCHEDULE), max_steps=6))


def test_a_run_that_ends_before_the_schedule_says_so(tmp_path):
    with pytest.warns(UserWarning, match="total_step is 100, but the run has 3 steps"):
        train(job(tmp_path, model=adalora(total_step=100), max_steps=3))
