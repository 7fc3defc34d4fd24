"""Every recipe that comes with peftcli trains: two steps of each, on a tiny base in place of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.recipe.read import read_recipe
from peftcli.recipe.tasks import OPTIONS
from tests.bases import MAKERS, tiny_base_for

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# What a small machine without a GPU has not, and what has no place in two steps.
ELSEWHERE = {
    "alora": ["adapter.alora_invocation_tokens=[257]"],  # the tiny base's tokens
    "adalora": ["adapter.tinit=0", "adapter.tfinal=1"],
    "qlora": ["quantization=null", "training.optim=adamw_torch"],
}
# Bases of another kind than the usual one.
BASES = {"moe-experts": "tiny_experts"}


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipe_trains_two_steps(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.run.train import train

    monkeypatch.chdir(ROOT)
    task = read_recipe(path).task_type
    own = tiny_base_for(task, tmp_path / "base") if task in MAKERS else None
    overrides = [
        f"base_model={own or request.getfixturevalue(BASES.get(path.stem, 'tiny_base'))}",
        f"training.output_dir={tmp_path / 'run'}",
        "training.max_steps=2",
        "training.logging_steps=1",
        *(["data.max_length=512"] if "max_length" in OPTIONS[task].DATA else []),
        *ELSEWHERE.get(path.stem, []),
    ]
    said: list[str] = []
    trained = train(read_recipe(path, overrides), say=said.append)
    assert trained.outcome.global_step == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2]
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_size > 0
