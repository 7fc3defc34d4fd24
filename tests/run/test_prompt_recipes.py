"""Prompt methods from a recipe: trained, resumed, generated with, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftcli.errors import ModelError
from peftcli.peft.model import PeftModel
from peftcli.recipe.read import read_recipe
from peftcli.run.generate import open_generator
from peftcli.run.sampling import Sampling
from peftcli.run.train import train
from peftcli.tasks import causal_lm

METHODS: dict[str, dict[str, Any]] = {
    "PROMPT_TUNING": {
        "num_virtual_tokens": 5,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Say it:",
    },
    "P_TUNING": {"num_virtual_tokens": 5},
    "PREFIX_TUNING": {"num_virtual_tokens": 5, "prefix_projection": True},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 5},
    "CPT": {"cpt_token_ids": [70, 71, 72]},
}
every = pytest.mark.parametrize("peft_type", METHODS)


def recipe(folder: Path, base: Path, peft_type: str, *overrides: str, **adapter: Any):
    rows = [
        {"prompt": f"say {word} {i}", "completion": f" {word}!"}
        for i, word in enumerate(["red", "green"] * 6)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = {
        "base_model": str(base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": peft_type, **METHODS[peft_type], **adapter},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "eval": 0.25, "max_length": 64},
        "training": {
            "output_dir": str(folder / "run"),
            "learning_rate": 0.01,
            "per_device_train_batch_size": 3,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_recipe(path, list(overrides))


def nothing(_: str) -> None:
    pass


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@every
def test_a_run_trains_the_prompt_and_generate_uses_it(peft_type: str, tmp_path: Path, tiny_base: Path):
    done = train(recipe(tmp_path, tiny_base, peft_type), say=nothing)
    seen = losses(tmp_path / "run")
    assert len(seen) == 6
    assert sum(seen[3:]) < sum(seen[:3])
    assert done.outcome.last_eval["eval_loss"] > 0
    sampling = Sampling(max_new_tokens=8, temperature=0)
    generator = open_generator(tmp_path / "run", sampling, seed=0, say=nothing)
    assert isinstance(generator.model, PeftModel)
    prompts = [generator.encode(text) for text in ("say red 1", "say")]
    together = [each.text for each in generator.complete(prompts, batch_size=2)]
    assert together == [generator.stream(ids, lambda _: None).text for ids in prompts]
    length = generator.model.active_peft_config.num_virtual_tokens
    assert generator.room([1] * 500) == min(8, 512 - length - 500)


@every
def test_a_run_that_is_resumed_ends_as_one_that_was_not(peft_type: str, tmp_path: Path, tiny_base: Path):
    train(recipe(tmp_path, tiny_base, peft_type), say=nothing)
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    (first, *_) = sorted((tmp_path / "run").glob("checkpoint-*"))
    train(recipe(tmp_path, tiny_base, peft_type), resume=first, say=nothing)
    resumed = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert (whole[name] == resumed[name]).all(), name


def test_the_best_prompt_is_taken_at_the_end(tmp_path: Path, tiny_base: Path):
    options = ("training.load_best_model_at_end=true", "training.learning_rate=10.0")
    done = train(recipe(tmp_path, tiny_base, "P_TUNING", *options), say=nothing)
    best = load_file(done.outcome.best_checkpoint / "adapter_model.safetensors")
    taken = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert (best["prompt_embeddings"] == taken["prompt_embeddings"]).all()


def test_a_row_s_loss_is_that_of_its_own_tokens(tmp_path: Path, tiny_base: Path):
    """The last logits are the tokens'; a model that gives all of them, and one that gives some, agree."""
    read = recipe(tmp_path, tiny_base, "PROMPT_TUNING")
    done = train(read, say=nothing)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), done.output_dir)
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "kept": torch.tensor([[1, 2], [3, 4]])}
    some = causal_lm._trained_logits(model, batch)
    whole = model(input_ids=ids).logits[:, -6:]
    torch.testing.assert_close(some, whole.take_along_dim(batch["kept"].unsqueeze(-1), dim=1))


@pytest.mark.parametrize(
    ("peft_type", "adapter", "message"),
    [
        ("PROMPT_TUNING", {}, "the first of the packed rows only; set data.packing to false"),
        ("PREFIX_TUNING", {}, "the first of the packed rows only"),
        ("CPT", {"cpt_tokens_type_mask": [1, 2, 4]}, "trained on the labels of its examples as well"),
    ],
)
def test_what_a_recipe_cannot_do_is_said(
    peft_type: str, adapter: dict[str, Any], message: str, tmp_path: Path, tiny_base: Path
):
    packing = f"data.packing={str(not adapter).lower()}"
    with pytest.raises(ModelError, match=message):
        train(recipe(tmp_path, tiny_base, peft_type, packing, **adapter), say=nothing)
