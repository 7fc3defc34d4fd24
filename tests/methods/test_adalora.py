"""AdaLoRA's training is PEFT's: the same penalty, the same ranks pruned, the same files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.adalora.config import AdaLoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import load_peft_weights
from tests.methods.cases import llama

CONFIG: dict[str, Any] = {
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "init_r": 4,
    "target_r": 1,
    "tinit": 2,
    "tfinal": 3,
    "total_step": 12,
    "beta1": 0.6,
    "beta2": 0.7,
    "task_type": "CAUSAL_LM",
}


def base() -> torch.nn.Module:
    torch.manual_seed(2)
    return llama().eval()


def pair(folder: Path, **config: Any) -> tuple[PeftModel, Any]:
    """One fresh adapter, in ours and in PEFT's model."""
    ours = get_peft_model(base(), AdaLoraConfig(**CONFIG | config))
    ours.save_pretrained(folder)
    return ours, peft.PeftModel.from_pretrained(base(), folder, is_trainable=True)


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 23, (3, 7))
    return {"input_ids": tokens, "labels": tokens}


def steps(model: Any, number: int, first: int = 1) -> list[float]:
    """Training as PEFT's documentation has it; gives the losses."""
    torch.manual_seed(first)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03)
    losses = []
    for step in range(first, first + number):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def kept(config: Any) -> dict[str, list[bool]]:
    return {name.replace(".default", ""): flags for name, flags in config.rank_pattern.items()}


@pytest.mark.parametrize("every", [1, 2])
def test_training_prunes_what_peft_prunes_and_gives_the_same_losses(tmp_path: Path, every: int):
    ours, theirs = pair(tmp_path, deltaT=every)
    assert steps(ours, 12) == pytest.approx(steps(theirs, 12), rel=1e-4)
    pattern = kept(ours.peft_config["default"])
    assert pattern == kept(theirs.peft_config["default"])
    assert sum(map(sum, pattern.values())) == 6
    assert any(not any(flags) for flags in pattern.values()), "no layer lost all its ranks: a corner less"
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, other[name], rtol=1e-3, atol=1e-5)


# A layer that lost all its ranks looks to PEFT as if it was sharded.
# PEFT takes AdaLoRA's rank_pattern for that of LoRA.
@pytest.mark.filterwarnings(
    "ignore:The following rank_pattern keys did not match any targeted module:RuntimeWarning"
)
@pytest.mark.filterwarnings("ignore:Adapter .default.. . LoRA tensor.s. have invalid shape")
def test_files_hold_the_ranks_that_were_kept_and_are_read_by_both(tmp_path: Path):
    ours, theirs = pair(tmp_path / "start")
    steps(ours, 12)
    steps(theirs, 12)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    shapes, configs = ({}, {}), ({}, {})
    for number, side in enumerate(("ours", "theirs")):
        shapes[number].update({key: t.shape for key, t in load_peft_weights(tmp_path / side).items()})
        configs[number].update(json.loads((tmp_path / side / "adapter_config.json").read_text()))
    assert shapes[0] == shapes[1]
    assert configs[0]["rank_pattern"] == configs[1]["rank_pattern"]
    ids = batch()["input_ids"]
    with torch.no_grad():
        for model, side in ((ours, "ours"), (theirs, "theirs")):
            wanted = model.eval()(ids).logits
            for kind in (PeftModel, peft.PeftModel):
                loaded = kind.from_pretrained(base(), tmp_path / side)
                torch.testing.assert_close(loaded(ids).logits, wanted, rtol=0, atol=2e-6)


def test_a_loaded_adapter_is_saved_as_it_was_and_trained_as_it_is(tmp_path: Path):
    ours, _ = pair(tmp_path)
    steps(ours, 12)
    ours.save_pretrained(tmp_path / "a")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "a", is_trainable=True)
    loaded.save_pretrained(tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before = {name: parameter.shape for name, parameter in loaded.named_parameters()}
    steps(loaded, 12)
    assert before == {name: parameter.shape for name, parameter in loaded.named_parameters()}


def test_a_state_dict_of_the_model_is_saved_without_the_pruned_ranks(tmp_path: Path):
    """Transformers' Trainer saves so."""
    ours, _ = pair(tmp_path)
    steps(ours, 12)
    ours.save_pretrained(tmp_path / "a")
    ours.save_pretrained(tmp_path / "b", state_dict=copy.deepcopy(ours.state_dict()))
    for key, tensor in load_peft_weights(tmp_path / "a").items():
        assert torch.equal(tensor, load_peft_weights(tmp_path / "b")[key])


def test_before_the_last_allocation_a_file_holds_all_ranks_since_the_optimizer_moves_them(tmp_path: Path):
    ours, _ = pair(tmp_path, deltaT=4)
    steps(ours, 6)
    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    ids = batch()["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, ours.eval()(ids).logits, rtol=0, atol=0)


def test_a_layer_without_a_gradient_is_pruned_first(tmp_path: Path):
    ours, _ = pair(tmp_path, target_r=3)
    layers: Any = ours.get_base_model().model.layers
    layers[1].mlp.down_proj.set_requires_grad(["default"], False)
    steps(ours, 9)
    pattern = kept(ours.peft_config["default"])
    assert not any(pattern["model.layers.1.mlp.down_proj.lora_E"])


def test_with_target_r_at_init_r_nothing_is_pruned(tmp_path: Path):
    ours, _ = pair(tmp_path, target_r=4)
    steps(ours, 12)
    assert all(map(all, kept(ours.peft_config["default"]).values()))


def test_a_frozen_adapter_adds_no_penalty(tmp_path: Path):
    ours, _ = pair(tmp_path)
    frozen = PeftModel.from_pretrained(base(), tmp_path)
    arguments = batch()
    torch.testing.assert_close(frozen(**arguments).loss, base()(**arguments).loss)
    assert frozen.base_model.penalty() is None
    assert ours(**arguments).loss > base()(**arguments).loss + 0.1


def test_allocating_without_a_total_is_refused():
    model = get_peft_model(base(), AdaLoraConfig(**CONFIG | {"total_step": None}))
    with pytest.raises(AdapterError, match="set total_step to its optimizer steps"):
        steps(model, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_r": 13}, "target_r: is 13, above init_r 12"),
        ({"total_step": 10, "tinit": 6, "tfinal": 4}, "tinit: with tfinal 4 it leaves no step of 10"),
        ({"deltaT": 0}, "deltaT: must be at least 1"),
        ({"beta1": 1.0}, "beta1: must be at least 0 and below 1"),
        ({"beta2": 0}, "beta2: must be above 0"),
        ({"orth_reg_weight": -1}, "orth_reg_weight: must be a finite number from 0 up"),
        ({"rank_pattern": {"a": [1]}}, "rank_pattern: 'a' must have a list of true and false"),
        ({"use_dora": True}, "use_dora: is not supported"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(AdapterConfigError, match=message):
        AdaLoraConfig(**values)


def test_a_rank_where_init_r_is_meant_is_said():
    with pytest.warns(UserWarning, match="AdaLoRA does not use r; set init_r"):
        AdaLoraConfig(r=16)
