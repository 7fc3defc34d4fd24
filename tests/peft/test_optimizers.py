"""LoRA+ and LoRA-FA are PEFT's: the same groups, the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import peft.optimizers
import pytest
import torch
from torch import nn

from peftcli import create_lorafa_optimizer, create_loraplus_optimizer
from peftcli.errors import AdapterError
from peftcli.methods.adalora.config import AdaLoraConfig
from peftcli.methods.ia3.config import IA3Config
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import bert, llama, net, shake

pytestmark = pytest.mark.filterwarnings("ignore:Could not identify embedding layer:UserWarning")


def pair(folder: Path, build: Any, **config: Any) -> tuple[PeftModel, Any]:
    """One adapter in ours and in PEFT's model."""
    torch.manual_seed(0)
    base = build()
    ours = get_peft_model(base, LoraConfig(**{"r": 2, "lora_alpha": 6, **config}))
    shake(ours)
    theirs = peft.get_peft_model(build(), peft.LoraConfig(**{"r": 2, "lora_alpha": 6, **config}))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
        (bert, {"task_type": "SEQ_CLS", "bias": "all"}),
        (net, {"target_modules": ["mid", "emb", "conv1"], "modules_to_save": ["norm"], "use_dora": True}),
    ],
)
def test_loraplus_groups_are_peft_s(tmp_path: Path, build: Any, config: dict[str, Any]):
    ours, theirs = pair(tmp_path, build, **config)
    arguments = {
        "lr": 1e-3,
        "loraplus_lr_ratio": 16.0,
        "loraplus_weight_decay": 0.1,
        "loraplus_lr_embedding": 1e-4,
        "betas": (0.8, 0.9),
    }

    def groups(model: Any, create: Any) -> list[tuple]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        made = create(model, torch.optim.AdamW, **arguments)
        return [
            (
                sorted(names[id(p)] for p in group["params"]),
                group["lr"],
                group["weight_decay"],
                group["betas"],
            )
            for group in made.param_groups
        ]

    assert groups(ours, create_loraplus_optimizer) == groups(
        theirs, peft.optimizers.create_loraplus_optimizer
    )


def test_loraplus_leaves_embeddings_slow_where_nothing_is_said():
    model = get_peft_model(llama(), LoraConfig(target_modules=["embed_tokens", "q_proj"]))
    made = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4)
    assert [group["lr"] for group in made.param_groups] == [1e-3, 1e-6, 4e-3, 4e-3]


def steps(model: Any, optimizer: Any, number: int = 4) -> None:
    for step in range(number):
        tokens = (torch.arange(14).reshape(2, 7) * (step + 1)) % 11
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_lorafa_steps_are_peft_s(tmp_path: Path, config: dict[str, Any]):
    ours, theirs = pair(tmp_path, llama, **config)
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    arguments = {"r": 2, "lora_alpha": 6, "lr": 0.01, "weight_decay": 0.1}
    steps(ours, create_lorafa_optimizer(ours, **arguments))
    steps(theirs, peft.optimizers.create_lorafa_optimizer(theirs, **arguments))
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_B" in name or "modules_to_save" in name), name
        assert parameter.requires_grad == other[name].requires_grad
        # PEFT rounds the projected gradient to bfloat16.
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=5e-4)


def test_lorafa_brings_the_product_nearest_to_a_step_of_the_whole_weight():
    """The direction of B A is the weight's gradient, projected on the rows of A."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=2, target_modules=["0"]))
    layer: Any = model.get_base_model()[0]
    optimizer: Any = create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=0.1)
    x, target = torch.randn(40, 6), torch.randn(40, 5)
    (model(x) - target).pow(2).mean().backward()
    down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight
    # B is zero, so the whole weight's gradient is that of the bare layer.
    weight = layer.base_layer.weight.detach().requires_grad_()
    (nn.functional.linear(x, weight, layer.base_layer.bias) - target).pow(2).mean().backward()
    direction = layer.scaling["default"] * optimizer._gradient(up) @ down
    nearest = weight.grad @ torch.linalg.pinv(down) @ down
    torch.testing.assert_close(direction, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:lora_dropout does not act on embeddings")
def test_lorafa_trains_dora_convolutions_and_embeddings_and_leaves_other_adapters_alone():
    torch.manual_seed(0)
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["mid", "conv2", "emb"], use_dora=True))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["mid"]))
    optimizer = create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=0.05)
    tokens = torch.arange(16).reshape(2, 8) % 11
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(optimizer.step(lambda: backward(model, tokens)))
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        trains = ".default" in name and "lora_A" not in name
        assert torch.equal(parameter, before[name]) != trains, name


def backward(model: Any, tokens: torch.Tensor) -> float:
    loss = (model(tokens) - 1).pow(2).mean()
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize(
    "config", [IA3Config(feedforward_modules=[], target_modules=["q_proj"]), AdaLoraConfig(total_step=9)]
)
def test_lorafa_is_refused_where_there_is_no_lora(config: Any):
    with pytest.raises(AdapterError, match="beside a frozen A, and the adapters in use have none"):
        create_lorafa_optimizer(get_peft_model(llama(), config), r=2, lora_alpha=8, lr=0.1)


def test_lorafa_refuses_another_use_rslora_than_the_adapter_s():
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="use_rslora is False for the adapter 'default'"):
        create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=0.1, use_rslora=True)
