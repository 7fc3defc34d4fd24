"""Runs whose adapter starts with what the rows say, or with a part of the base: trained, resumed, published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftcli.errors import AdapterError, DataError, RecipeError
from peftcli.peft.model import PeftModel
from peftcli.recipe.read import read_recipe
from peftcli.recipe.schema import Recipe
from peftcli.run.train import train
from tests.bases import tiny_base_for
from tests.data.writers import write_jsonl

STARTS: dict[str, dict[str, Any]] = {
    "eva": {"eva_config": {"rho": 4.0}, "r": 2, "lora_alpha": 4},
    "lora_ga": {"lora_ga_config": {"direction": "ArBr"}},
    "corda": {"corda_config": {"corda_method": "kpm"}},
    "pissa_niter_4": {},
    "loftq": {"loftq_config": {"loftq_iter": 2}},
}
every = pytest.mark.parametrize("start", STARTS)
TAKING = pytest.mark.parametrize("start", ["lora_ga", "corda", "pissa_niter_4"])
PUBLISHED = "the adapter began with a part of the base; it is saved as a plain one for the base as it was"


def rows(count: int = 16) -> list[dict[str, str]]:
    words = ["red", "green", "blue", "a word that is longer than others"]
    return [{"prompt": f"say {words[i % 4]} {i}", "completion": f" {words[i % 4]}!"} for i in range(count)]


def recipe(folder: Path, base: Path, start: str, *overrides: str, **adapter) -> Recipe:
    write_jsonl(folder / "rows.jsonl", rows())
    content = {
        "base_model": str(base),
        "task_type": "CAUSAL_LM",
        "adapter": {
            "peft_type": "LORA",
            "init_lora_weights": start,
            "r": 4,
            "target_modules": "all-linear",
            **STARTS[start],
            **adapter,
        },
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "eval": 0.25, "max_length": 96},
        "training": {
            "output_dir": str(folder / "run"),
            "learning_rate": 0.01,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_recipe(path, list(overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=torch.arange(40).reshape(2, 20)).logits
    return result


@every
def test_a_run_learns_says_in_a_line_how_it_started_and_is_the_same_twice(
    start: str, tmp_path: Path, tiny_base: Path
):
    said: list[str] = []
    first = train(recipe(tmp_path, tiny_base, start), say=said.append)
    lines = [line for line in said if line.startswith("init_lora_weights")]
    assert len(lines) == (start in {"eva", "lora_ga", "corda"})
    assert all("batches of the training rows" in line for line in lines)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert first.outcome.last_eval["eval_loss"] > 0
    again = train(
        recipe(tmp_path, tiny_base, start, f"training.output_dir={tmp_path / 'again'}"), say=said.append
    )
    assert equal(first.output_dir, again.output_dir)


@every
def test_a_run_that_is_resumed_ends_as_one_that_was_not(start: str, tmp_path: Path, tiny_base: Path):
    whole = train(recipe(tmp_path, tiny_base, start), say=lambda _: None).output_dir
    (first, _) = sorted(whole.glob("checkpoint-*"))
    before = weights(whole)
    said: list[str] = []
    resumed = train(recipe(tmp_path, tiny_base, start), resume=first, say=said.append).output_dir
    assert not [line for line in said if "training rows" in line and line.startswith("init_lora")]
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(resumed).items())


@every
def test_the_best_checkpoint_is_taken_at_the_end(start: str, tmp_path: Path, tiny_base: Path):
    options = ("training.load_best_model_at_end=true", "training.learning_rate=1.0")
    done = train(recipe(tmp_path, tiny_base, start, *options), say=lambda _: None)
    assert equal(done.output_dir, done.outcome.best_checkpoint)


@TAKING
def test_the_adapter_and_each_checkpoint_are_for_the_published_base(
    start: str, tmp_path: Path, tiny_base: Path
):
    said: list[str] = []
    folder = train(recipe(tmp_path, tiny_base, start), say=said.append).output_dir
    assert PUBLISHED in said
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"]) == (True, 8)
    (_, last) = sorted(folder.glob("checkpoint-*"))
    found = [
        logits(load(AutoModelForCausalLM.from_pretrained(tiny_base), place))
        for load in (PeftModel.from_pretrained, peft.PeftModel.from_pretrained)
        for place in (folder, last)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], logits(AutoModelForCausalLM.from_pretrained(tiny_base)), atol=1e-3)


@TAKING
def test_before_its_first_step_the_run_s_model_is_the_base(start: str, tmp_path: Path, tiny_base: Path):
    evaluated = []
    for name in (start, "eva"):
        options = (
            "training.eval_on_start=true",
            "training.max_steps=1",
            f"training.output_dir={tmp_path / name}",
        )
        folder = train(recipe(tmp_path, tiny_base, name, *options), say=lambda _: None).output_dir
        first = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        evaluated.append(first["eval_loss"])
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-4)


def test_eva_s_ranks_and_layers_are_in_the_adapter_s_config(tmp_path: Path, tiny_base: Path):
    said: list[str] = []
    folder = train(recipe(tmp_path, tiny_base, "eva"), say=said.append).output_dir
    (line,) = (line for line in said if line.startswith("init_lora_weights eva"))
    config = json.loads((folder / "adapter_config.json").read_text())
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in weights(folder).items()
        if key.endswith("lora_A.weight")
    }
    assert sum(ranks.values()) == 2 * 14
    assert {name: rank for name, rank in ranks.items() if rank != 2} == config["rank_pattern"]
    assert {name: 2.0 * rank for name, rank in config["rank_pattern"].items()} == config["alpha_pattern"]
    assert f"ranks {min(ranks.values())} to {max(ranks.values())}" in line
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)


def test_loftq_s_adapter_is_loaded_on_the_published_base(tmp_path: Path, tiny_base: Path):
    folder = train(recipe(tmp_path, tiny_base, "loftq"), say=lambda _: None).output_dir
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"]) == ("loftq", 4)
    (_, last) = sorted(folder.glob("checkpoint-*"))
    found = [
        logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), place))
        for place in (folder, last)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("start", ["eva", "lora_ga", "corda"])
@pytest.mark.parametrize(
    "override",
    [
        "data.packing=true",
        "training.dataloader_num_workers=1",
        "training.bf16=true",
        "training.train_sampling_strategy=group_by_length",
    ],
)
def test_rows_are_seen_as_the_training_sees_them(start: str, override: str, tmp_path: Path, tiny_base: Path):
    said: list[str] = []
    options = (override, "training.max_steps=1", "training.save_strategy=no")
    done = train(recipe(tmp_path, tiny_base, start, *options), say=said.append)
    assert done.outcome.global_step == 1
    assert [line for line in said if line.startswith("init_lora_weights")]


def test_a_stream_s_rows_are_looked_at_too(tmp_path: Path, tiny_base: Path):
    said: list[str] = []
    options = ("data.streaming=true", "data.eval=null", "training.eval_strategy=no", "training.max_steps=2")
    done = train(recipe(tmp_path, tiny_base, "eva", *options), say=said.append)
    assert done.outcome.global_step == 2
    assert [line for line in said if line.startswith("init_lora_weights eva")]


@pytest.mark.parametrize("start", ["eva", "lora_ga", "corda"])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "SEQ_2_SEQ_LM"])
def test_other_tasks_rows_say_it_too(start: str, task_type: str, tmp_path: Path):
    base = tiny_base_for(task_type, tmp_path)
    data = {
        "SEQ_CLS": [{"text": f"{word} {i}", "label": word} for i in range(6) for word in ("good", "bad")],
        "SEQ_2_SEQ_LM": [{"source": f"say {i}", "target": f"{i}" * (1 + i % 3)} for i in range(12)],
    }
    recipe(tmp_path, base, start)
    write_jsonl(tmp_path / "rows.jsonl", data[task_type])
    options = (
        f"task_type={task_type}",
        "training.max_steps=2",
        "data.eval=null",
        "training.eval_strategy=no",
        "training.save_strategy=no",
        "adapter.r=2",
    )
    said: list[str] = []
    done = train(read_recipe(tmp_path / "recipe.yaml", list(options)), say=said.append)
    assert done.outcome.global_step == 2
    assert [line for line in said if line.startswith(f"init_lora_weights {start}")]


def test_what_starts_with_a_part_of_the_base_has_no_magnitudes(tmp_path: Path, tiny_base: Path):
    with pytest.raises(AdapterError, match=r"use_dora: .* leave one of them out"):
        train(recipe(tmp_path, tiny_base, "corda", use_dora=True), say=lambda _: None)


def test_no_batch_is_no_start(tmp_path: Path, tiny_base: Path):
    options = ("training.dataloader_drop_last=true", "training.per_device_train_batch_size=50")
    with pytest.raises((DataError, RecipeError), match="do not fill one batch"):
        train(recipe(tmp_path, tiny_base, "eva", *options), say=lambda _: None)


def test_a_recipe_s_wrong_setting_has_its_line(tmp_path: Path, tiny_base: Path):
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, tiny_base, "eva", eva_config={"rho": 0.5, "taw": 0.9})
    lines = (tmp_path / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    for name, message in (("rho", "must be at least 1, not 0.5"), ("taw", "did you mean 'tau'?")):
        (number,) = (i for i, line in enumerate(lines, 1) if line.strip().startswith(name))
        (problem,) = (problem for problem in caught.value.problems if name in problem.key)
        assert problem.where.startswith(f"{tmp_path / 'recipe.yaml'}:{number}:")
        assert problem.key == f"adapter.eva_config.{name}"
        assert message in problem.message
