"""Two processes do what one does. They talk over gloo, on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from peftcli.train.loop import train
from peftcli.train.state import find_checkpoint
from tests.train.tiny import Net, Stream, adalora, difference, job, losses, metrics, rows, trained

PORT = {"torchrun": "--master-port", "accelerate": "--main_process_port"}
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"],
    "accelerate": [
        "accelerate.commands.accelerate_cli",
        "launch",
        # Its way to several local processes; with --cpu it would start one. The recipe says use_cpu.
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_ip=127.0.0.1",
    ],
}

pytestmark = pytest.mark.slow


def two_processes(folder, launcher="torchrun", **options):
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"{PORT[launcher]}={free.getsockname()[1]}"
    worker = ["-m", "tests.train.worker", str(folder), json.dumps({"ddp_timeout": 60, **options})]
    process = subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS[launcher], port, *worker],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors


def ends(folder):
    one, other = (load_file(folder / f"end-{rank}.safetensors") for rank in range(2))
    assert difference(one, other) == 0
    return one


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_adapter_of_one(tmp_path, launcher):
    """8 rows a step: 4 × 1 × 2 processes against 8 × 1; 21 rows, so that the last batch is uneven."""
    alone = Net()
    outcome = train(
        job(tmp_path, model=alone, train_rows=rows(21), per_device_train_batch_size=8, eval_strategy="epoch")
    )
    two = tmp_path / "two"
    two_processes(two, launcher, per_device_train_batch_size=4, rows=21, eval_strategy="epoch")
    assert difference(trained(alone), ends(two)) < 1e-5
    assert difference(trained(alone), trained(Net())) > 0.05
    assert losses(tmp_path) == pytest.approx(losses(two))
    for rank in range(2):
        evaluation, tokens = json.loads((two / f"outcome-{rank}.json").read_text())
        assert evaluation == pytest.approx(outcome.last_eval)
        assert tokens == outcome.tokens


def test_two_processes_accumulate_as_one_does(tmp_path):
    """A last batch of one row leaves one of the processes idle."""
    alone = Net()
    train(job(tmp_path, model=alone, train_rows=rows(17), per_device_train_batch_size=8))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "rows": 17}
    two_processes(tmp_path / "two", **options)
    assert difference(trained(alone), ends(tmp_path / "two")) < 1e-5


def test_two_processes_give_a_methods_penalty_the_weight_that_one_gives_it(tmp_path):
    """Of AdaLoRA, which allocates ranks after each step, too; the last batch is uneven."""
    alone = adalora(tinit=1, tfinal=1)
    train(job(tmp_path, model=alone, train_rows=rows(21), per_device_train_batch_size=8))
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "rows": 21,
        "adalora": True,
    }
    two_processes(tmp_path / "two", **options)
    assert difference(trained(alone), ends(tmp_path / "two")) < 1e-5
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "two"))


def test_two_processes_share_a_stream(tmp_path):
    alone = Net()
    train(job(tmp_path, model=alone, train_rows=Stream(rows(18)), per_device_train_batch_size=8, max_steps=6))
    two_processes(tmp_path / "two", per_device_train_batch_size=4, rows=18, max_steps=6, stream=True)
    assert difference(trained(alone), ends(tmp_path / "two")) < 1e-5


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_resume_exactly(tmp_path):
    options = {"dropout": 0.3, "per_device_train_batch_size": 2}
    two_processes(tmp_path / "straight", **options)
    two_processes(tmp_path / "stopped", stop=True, **options)
    for rank in range(2):
        assert (tmp_path / "stopped" / f"error-{rank}").read_text().startswith("130 interrupted after step 3")
    assert find_checkpoint(tmp_path / "stopped").name == "checkpoint-3"
    two_processes(tmp_path / "stopped", resume=True, **options)
    assert difference(ends(tmp_path / "straight"), ends(tmp_path / "stopped")) == 0
    assert len(metrics(tmp_path / "stopped")) == len(metrics(tmp_path / "straight")) == 10


def test_one_process_goes_on_where_two_stopped(tmp_path):
    two_processes(tmp_path / "two", per_device_train_batch_size=4, save_strategy="epoch", rows=16)
    resumed = Net()
    start = tmp_path / "two" / "checkpoint-2"
    options = {"per_device_train_batch_size": 8, "train_rows": rows(16), "resume_from": start}
    train(job(tmp_path / "one", model=resumed, **options))
    assert difference(trained(resumed), ends(tmp_path / "two")) < 1e-5
