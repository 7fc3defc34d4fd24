"""`peftcli train --smoke`: a recipe is proved in seconds, and nothing of the real run is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run.test_train import peftcli, project  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow


def test_a_sound_recipe_is_proved_and_leaves_nothing(project: Path) -> None:  # noqa: F811
    done = peftcli("train", "recipe.yaml", "--smoke", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["rows"] == 12
    assert "the adapter was saved, loaded again, and gives the same loss" in done.stderr
    assert sorted(path.name for path in project.iterdir()) == ["recipe.yaml", "rows.jsonl"]


def test_it_takes_the_longest_rows(project: Path) -> None:  # noqa: F811
    rows = [json.loads(line) for line in (project / "rows.jsonl").read_text("utf-8").splitlines()]
    rows[7]["completion"] = " long" * 9
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = ("--set", "data.eval=null", "--set", "training.eval_strategy=no")
    done = peftcli("train", "recipe.yaml", "--smoke", "--json", *changes, cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["longest_row"] > 50


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ("adapter.target_modules=[q_prj]", 4, "q_proj"),
        ("data.max_length=4", 3, "max_length"),
        ("training.learning_rate=1e30", 5, "NaN or infinite"),
    ],
)
def test_what_would_stop_the_run_stops_the_smoke_run(
    project: Path,  # noqa: F811
    change: str,
    status: int,
    said: str,
) -> None:
    done = peftcli("train", "recipe.yaml", "--smoke", "--set", change, cwd=project)
    assert done.returncode == status, done.stderr
    assert said in done.stderr


def test_a_stream_is_proved_too(project: Path) -> None:  # noqa: F811
    changes = ["data.streaming=true", "data.eval=null", "training.max_steps=50", "training.eval_strategy=no"]
    flags = [part for change in changes for part in ("--set", change)]
    done = peftcli("train", "recipe.yaml", "--smoke", *flags, cwd=project)
    assert done.returncode == 0, done.stderr
