"""Nothing of an earlier run is lost to a mistake, and no two runs write one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.errors import RecipeError
from peftcli.run.changes import check_changes, check_locked
from peftcli.run.claim import begin, held, set_aside
from peftcli.run.lock import Lock, write_lock
from peftcli.train.state import find_checkpoint
from tests.run.test_train import ENVIRONMENT, command, peftcli, project  # noqa: F401  (the fixture)
from tests.train.tiny import job, train


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "change", "status"),
    [
        ("--set=training.overwrite_output_dir=true", "data.train.path=trian.jsonl", 3),
        ("--set=training.overwrite_output_dir=true", "adapter.target_modules=[q_prj]", 4),
        ("--set=training.overwrite_output_dir=true", "training.optim_args=nope=3", 2),
        ("--resume", "adapter.r=8", 2),
        ("--resume", "training.learning_rate=0.5", 2),
    ],
)
def test_a_start_that_fails_leaves_the_run_before_as_it_was(
    project: Path,  # noqa: F811
    flag: str,
    change: str,
    status: int,
) -> None:
    assert peftcli("train", "recipe.yaml", cwd=project).returncode == 0
    before = content(project / "runs" / "demo")
    failed = peftcli("train", "recipe.yaml", flag, "--set", change, cwd=project)
    assert failed.returncode == status, failed.stderr
    assert content(project / "runs" / "demo") == before


@pytest.mark.slow
def test_a_start_that_failed_does_not_stand_in_the_way_of_the_next(project: Path) -> None:  # noqa: F811
    failed = peftcli("train", "recipe.yaml", "--set", "adapter.target_modules=[q_prj]", cwd=project)
    assert failed.returncode == 4
    assert not (project / "runs" / "demo").exists()
    assert peftcli("train", "recipe.yaml", cwd=project).returncode == 0


@pytest.mark.slow
def test_the_second_of_two_runs_in_one_folder_is_refused(project: Path) -> None:  # noqa: F811
    with held(project / "runs" / "demo"):
        refused = peftcli("train", "recipe.yaml", cwd=project)
    assert refused.returncode == 2
    assert "another run is writing runs/demo now" in refused.stderr
    assert peftcli("train", "recipe.yaml", cwd=project).returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_one_line(project: Path) -> None:  # noqa: F811
    limited = f"ulimit -f 16; exec {' '.join(command('train', 'recipe.yaml'))}"
    done = subprocess.run(
        ["bash", "-c", limited], capture_output=True, encoding="utf-8", cwd=project, env=ENVIRONMENT
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert "runs/demo cannot be written: " in errors[0]


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from peftcli.run.claim import held\n"
    code += f"with held(Path({str(tmp_path / 'run')!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 9
    with held(tmp_path / "run"):
        pass


def test_checkpoints_of_a_branch_that_is_left_are_set_aside_and_not_resumed(tmp_path: Path) -> None:
    train(job(tmp_path, save_strategy="steps", save_steps=2, max_steps=6))
    said: list[str] = []
    set_aside(tmp_path, tmp_path / "checkpoint-2", said.append)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert sorted(path.name for path in tmp_path.glob("abandoned-*")) == [
        "abandoned-checkpoint-4",
        "abandoned-checkpoint-6",
    ]
    assert len(said) == 2


def test_another_adapter_or_base_is_no_resumption_and_other_changes_are_said(tmp_path: Path) -> None:
    def lock(**recipe: object) -> Lock:
        return Lock({"adapter": {"r": 4}, **recipe}, {"fingerprint": "x"}, {}, {})

    begin(tmp_path, lock(), None, print)
    write_lock(tmp_path, lock())
    with pytest.raises(RecipeError, match=r"recipe\.adapter\.r: 8, was 4; change it back"):
        check_changes(lock(adapter={"r": 8}), tmp_path, tmp_path, print)
    changed = lock(training={"seed": 3})
    with pytest.raises(RecipeError, match=r"recipe\.training\.seed: 3, was not set; .* --resume-anyway"):
        check_changes(changed, tmp_path, tmp_path, print)
    said: list[str] = []
    check_changes(changed, tmp_path, tmp_path, said.append, anyway=True)
    assert said == ["changed since the run began: recipe.training.seed: 3, was not set"]
    with pytest.raises(RecipeError, match=r"recipe\.adapter\.r: 8"):
        check_changes(lock(adapter={"r": 8}), tmp_path, tmp_path, print, anyway=True)


def test_rows_that_were_only_moved_are_the_same_rows_and_others_are_not(tmp_path: Path) -> None:
    def lock(path: str, digest: str) -> Lock:
        source = {"path": path, "sha256": {path: digest}}
        return Lock({"data": {"train": [{"path": path}]}}, {}, {"train_sources": [source]}, {})

    write_lock(tmp_path, lock("a.jsonl", "1"))
    check_changes(lock("b.jsonl", "1"), tmp_path, tmp_path, print)
    with pytest.raises(RecipeError, match=r"sha256\.a\.jsonl: 2, was 1"):
        check_changes(lock("a.jsonl", "2"), tmp_path, tmp_path, print, anyway=True)


def test_a_base_that_was_only_moved_is_the_same_base_and_another_at_its_place_is_not(tmp_path: Path) -> None:
    def lock(path: str, fingerprint: str) -> Lock:
        return Lock({"base_model": path}, {"name": path, "path": path, "fingerprint": fingerprint}, {}, {})

    write_lock(tmp_path, lock("a", "1"))
    check_changes(lock("b", "1"), tmp_path, tmp_path, print)
    with pytest.raises(RecipeError, match=r"base\.fingerprint: 2, was 1"):
        check_changes(lock("a", "2"), tmp_path, tmp_path, print, anyway=True)


def test_a_locked_run_is_the_lock_beside_its_recipe_or_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    lock = Lock({"training": {"seed": 1, "output_dir": "a"}}, {"fingerprint": "x"}, {}, {"torch": "2"})
    with pytest.raises(RecipeError, match=r"there is no .*recipe\.lock\.yaml; write it by"):
        check_locked(lock, recipe)
    write_lock(tmp_path, lock)
    check_locked(lock, recipe)
    moved = Lock({"training": {"seed": 1, "output_dir": "b"}}, {"fingerprint": "x"}, {}, {"torch": "2"})
    check_locked(moved, recipe)
    for other in (
        Lock(lock.recipe, {"fingerprint": "y"}, {}, lock.versions),
        Lock({"training": {"seed": 2, "output_dir": "a"}}, lock.base, {}, lock.versions),
        Lock(lock.recipe, lock.base, {}, {"torch": "3"}),
        Lock(lock.recipe, lock.base, {"train_sources": [{"sha256": {"a": "1"}}]}, lock.versions),
        Lock(lock.recipe, lock.base, {}, lock.versions, "template"),
    ):
        with pytest.raises(RecipeError, match="--locked: this is not what"):
            check_locked(other, recipe)


def test_what_a_killed_run_was_writing_goes_and_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, left = (tmp_path / f".README.md.{number}.tmp" for number in (os.getpid(), dead.pid))
    for path in (mine, left, tmp_path / ".notes.tmp"):
        path.touch()
    with held(tmp_path):
        assert not left.exists()
        assert mine.exists()
        assert (tmp_path / ".notes.tmp").exists()
