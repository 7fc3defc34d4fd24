"""What goes wrong around a run: a full disk, a folder that nobody may write, no memory, a network that goes away.

Each is one line with its status; what was saved before stays whole, and the run goes on from there once the cause is
gone. No test needs root, or anything of the machine.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peftcli.train.state import checkpoints, find_checkpoint, torn
from tests.run.test_kills import log, write_project
from tests.run.test_train import ENVIRONMENT, command

WEIGHTS = "adapter_model.safetensors"
FOREVER = resource.RLIM_INFINITY


def start(folder: Path, *arguments: str, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", cwd=folder,
        env=ENVIRONMENT, preexec_fn=before,  # noqa: PLW1509  (no test here has threads while it starts one)
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int) -> str:
    """The last line that the process says; of an error the only one."""
    _, said = process.communicate(timeout=200)
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert [line[:7] for line in said.splitlines()].count("error: ") == (status != 0), said
    return said.splitlines()[-1]


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Waits, as long as the process goes on."""
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Path:
    """A run of 40 steps that saves every second one."""
    training = {"num_train_epochs": 5, "save_steps": 2, "eval_strategy": "no"}
    write_project(tmp_path, tiny_base, {"training": training})
    return tmp_path


def goes_on(project: Path) -> None:
    """The run in `out`, resumed, ends as one that nothing happened to."""
    finish(start(project, "train", "recipe.yaml", "--resume"), 0)
    finish(start(project, "train", "recipe.yaml", "--set", "training.output_dir=straight"), 0)
    assert (project / "out" / WEIGHTS).read_bytes() == (project / "straight" / WEIGHTS).read_bytes()
    assert log(project / "out") == log(project / "straight")
    assert not [*(project / "out").glob(".*")]


# A full disk.


@pytest.mark.slow
@pytest.mark.parametrize("room", [100, 30_000])
def test_a_disk_that_is_full_while_training_keeps_the_last_checkpoint_and_the_run_goes_on_from_it(
    project: Path, room: int
) -> None:
    """A limit on the size of files stands in for it: none of them can be written beyond it from a moment on."""
    out = project / "out"
    process = start(project, "train", "recipe.yaml")
    until((out / "checkpoint-4").is_dir, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, FOREVER))
    said = finish(process, 2)
    assert said == (
        "error: training.output_dir: out cannot be written: File too large; make room, and go on with --resume"
    )
    assert all(torn(folder) is None for _, folder in checkpoints(out))
    last = find_checkpoint(out)
    assert last is not None
    assert int(last.name.rpartition("-")[2]) >= 4
    # It leaves no part of a checkpoint, which would need the room.
    assert not [*out.glob(".checkpoint-*")]
    goes_on(project)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 2_000, 12_000, 40_000])
def test_a_disk_that_is_full_from_the_start_is_one_line_whichever_file_is_the_first_that_has_no_room(
    project: Path, room: int
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, FOREVER))

    # Standard error is a pipe: the limit is on files alone.
    said = finish(start(project, "train", "recipe.yaml", before=limit), 2)
    assert ("cannot be written: " if room else "no temporary folder can be written; ") in said
    assert [*(project / "out").glob("checkpoint-*")] == []
    shutil.rmtree(project / "out", ignore_errors=True)
    finish(start(project, "train", "recipe.yaml", "--set", "training.max_steps=1"), 0)


# A folder that is read-only.


def obey_permissions() -> None:
    """Takes from a process of root, and what it starts, the right to write where permissions forbid it."""
    if os.geteuid() == 0:
        drop, override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        assert ctypes.CDLL(None, use_errno=True).prctl(drop, override, 0, 0, 0) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def test_a_read_only_folder_is_one_line_before_anything_is_loaded(project: Path) -> None:
    (project / "out").mkdir()
    with read_only(project / "out"):
        said = finish(start(project, "train", "recipe.yaml", before=obey_permissions), 2)
    assert said == "error: training.output_dir: out cannot be written: Permission denied"
    assert [*(project / "out").iterdir()] == []


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_while_training_keeps_its_checkpoints(project: Path) -> None:
    out = project / "out"
    process = start(project, "train", "recipe.yaml", before=obey_permissions)
    until((out / "checkpoint-4").is_dir, process)
    with read_only(out):
        said = finish(process, 2)
    assert said.startswith("error: training.output_dir: out cannot be written: Permission denied")
    assert all(torn(folder) is None for _, folder in checkpoints(out))
    goes_on(project)


# Memory.


@pytest.mark.slow
def test_out_of_memory_is_status_7_and_says_what_to_change_and_by_how_much(project: Path) -> None:
    """The process's address space is limited to a little more than it has when training begins."""
    rows = (project / "rows.jsonl").read_text(encoding="utf-8") * 40
    (project / "rows.jsonl").write_text(rows, encoding="utf-8")
    process = start(
        project, "train", "recipe.yaml", "--set", "training.per_device_train_batch_size=600",
        "--set", "training.gradient_accumulation_steps=1",
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("training "):
            break
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 60_000_000
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    assert finish(process, 7) == (
        "error: out of memory; try training.per_device_train_batch_size: 300 with gradient_accumulation_steps: 2 "
        "(the same step in smaller bites), or training.activation_checkpointing: true, or a smaller data.max_length"
    )


# The network.


@contextmanager
def dying_server(answers: int) -> Iterator[str]:
    """A server that hangs up on every request in the middle of its answer, so many times; then it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(answers):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
                    )
            server.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def hub_environment(folder: Path, url: str) -> dict[str, str]:
    return {
        **ENVIRONMENT,
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hub"),
        "HF_TOKEN": "hf_token",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


@pytest.mark.parametrize("answers", [1, 9])
@pytest.mark.parametrize(
    "arguments", [("push", "run", "me/adapter"), ("train", "recipe.yaml", "--set", "base_model=org/base")]
)
def test_a_network_that_vanishes_in_the_middle_is_status_8_and_leaves_things_as_they_were(
    tmp_path: Path, tiny_base: Path, arguments: tuple[str, ...], answers: int
) -> None:
    write_project(tmp_path, tiny_base, {})
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (run / WEIGHTS).write_bytes(bytes(100))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with dying_server(answers) as url:
        done = subprocess.run(
            command(*arguments), capture_output=True, encoding="utf-8", cwd=tmp_path,
            env=hub_environment(tmp_path, url), timeout=120,
        )  # fmt: skip
    assert done.returncode == 8, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    after = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.is_relative_to(tmp_path / "hub")
    }
    assert after == before
