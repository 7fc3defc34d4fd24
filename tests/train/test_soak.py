"""A run of 10,000 steps takes at its end what it took at its beginning, and its logs can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.train.state import checkpoints, torn
from tests.run.test_train import ENVIRONMENT, ROOT
from tests.train.tiny import metrics

STEPS = 10_000


@pytest.mark.slow
def test_memory_and_files_stay_flat_over_ten_thousand_steps(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.soak", str(tmp_path), str(STEPS)],
        capture_output=True, encoding="utf-8", cwd=ROOT, env=ENVIRONMENT, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout)
    assert [sample["step"] for sample in samples] == list(range(STEPS // 10, STEPS + 1, STEPS // 10))
    first, last = samples[1], samples[-1]
    grown = last["resident"] - first["resident"]
    print(
        f"resident {first['resident'] / 2**20:.1f} → {last['resident'] / 2**20:.1f} MiB, files {samples[0]['files']}"
    )
    # 800 log lines and 16 evaluations more are kept for the checkpoints: a few hundred kilobytes.
    assert grown < 4 * 2**20
    assert len({sample["files"] for sample in samples}) == 1

    records = metrics(tmp_path)
    assert [record["step"] for record in records if "loss" in record] == list(range(10, STEPS + 1, 10))
    assert [record["step"] for record in records if "eval_loss" in record] == list(range(500, STEPS + 1, 500))
    # A line a record, none of them long.
    assert max(map(len, (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())) < 400
    kept = [folder for _, folder in checkpoints(tmp_path)]
    assert [folder.name for folder in kept] == [f"checkpoint-{STEPS - 500}", f"checkpoint-{STEPS}"]
    assert [torn(folder) for folder in kept] == [None, None]
