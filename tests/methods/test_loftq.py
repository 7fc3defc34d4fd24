"""LoftQ: the base is rounded as bitsandbytes rounds it, and the adapter makes up for what that lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import nn

from peftcli import LoftQConfig, LoraConfig, PeftModel, get_peft_model, replace_lora_weights_loftq
from peftcli.errors import AdapterError
from peftcli.methods.lora.loftq import approximated, fitted, rounded
from tests.methods.cases import outputs
from tests.methods.models import gpt2, llama

# QLoRA's table, as bitsandbytes has it.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# What bitsandbytes 0.50 makes of `example()`: each number's place in the table, and each row's first integers.
NF4_PLACES = (
    "789a853237dfe775457bdda410779ab952138df7764348ceda307679bb941128f78853248dfea27668bdc931029799852239efe9"
)
INT8 = [
    [0, 10, 27, 33, 17, -21, -63, -82, -60, 2, 77, 127, 119],
    [1, -5, -22, -35, -29, 2, 45, 77, 75, 30, -42, -106, -127],
]
INT8_SCALES = [2.7265625, 2.927734375]
TOKENS = torch.arange(24).view(2, 12) % 23
SCALED = {"r": 2, "lora_alpha": 6}


def example() -> torch.Tensor:
    return (torch.arange(104.0).view(8, 13) * 0.7).sin() * torch.linspace(0.1, 3, 13)


def base(build=llama) -> nn.Module:
    torch.manual_seed(0)
    return build()


def adapted(**fields) -> PeftModel:
    fields = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "loftq"} | fields
    return get_peft_model(base(), LoraConfig(**fields))


# Rounding.


def test_four_bits_are_bitsandbytes_nf4():
    blocks = example().flatten().split(64)
    scales = torch.cat([block.abs().max().expand(len(block)) for block in blocks])
    values = torch.tensor(NF4)[[int(place, 16) for place in NF4_PLACES]] * scales
    assert torch.equal(rounded(example(), 4), values.view(8, 13))


def test_eight_bits_are_bitsandbytes_int8():
    values = torch.tensor(INT8) * torch.tensor(INT8_SCALES)[:, None] / 127
    torch.testing.assert_close(rounded(example(), 8)[:2], values)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_twice_is_rounding_once_and_zeros_stay(bits: int):
    once = rounded(example(), bits)
    torch.testing.assert_close(rounded(once, bits), once, rtol=0, atol=2e-3)
    assert not rounded(torch.zeros(3, 70), bits).any()
    assert rounded(example().bfloat16(), bits).dtype == torch.bfloat16


# The adapter.


def test_the_factors_are_peft_s():
    lost = example() - rounded(example(), 4)
    parts = _low_rank_decomposition(lost, reduced_rank=3)
    down, up = fitted(lost, 3)
    torch.testing.assert_close(down, parts["R"])
    torch.testing.assert_close(up, parts["L"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("turns", [1, 3])
def test_base_and_adapter_come_nearer_to_the_weight_than_its_rounding(bits: int, turns: int):
    low, down, up = approximated(example(), 2, bits, turns)
    lost = (example() - rounded(example(), bits)).norm()
    assert (example() - low - up @ down).norm() < 0.8 * lost


def test_a_full_rank_makes_up_for_all_of_it_and_a_larger_one_adds_zeros():
    for rank in (8, 20):
        low, down, up = approximated(example(), rank, 4, 1)
        assert (down.shape, up.shape) == ((rank, 13), (8, rank))
        torch.testing.assert_close(low + up @ down, example())


@pytest.mark.parametrize("more", [{}, SCALED, SCALED | {"use_rslora": True}])
def test_a_full_rank_adapter_gives_the_base_back_whatever_its_scaling(more: dict[str, Any]):
    """PEFT leaves the scaling out, so that its adapter overshoots."""
    model = adapted(**more | {"r": 8, "target_modules": ["q_proj", "o_proj"]})
    assert not torch.equal(
        model.get_base_model().model.layers[0].self_attn.q_proj.weight,
        base().model.layers[0].self_attn.q_proj.weight,
    )
    arguments = {"input_ids": TOKENS}
    torch.testing.assert_close(outputs(model, arguments), outputs(base(), arguments), rtol=0, atol=1e-5)


def test_gpt2_s_conv1d_is_rounded_as_the_linear_layer_that_it_becomes():
    model = get_peft_model(
        base(gpt2), LoraConfig(target_modules=["c_fc"], init_lora_weights="loftq", fan_in_fan_out=True)
    )
    before = base(gpt2).transformer.h[0].mlp.c_fc.weight
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, rounded(before.T, 4).T)
    arguments = {"input_ids": TOKENS}
    torch.testing.assert_close(outputs(model, arguments), outputs(base(gpt2), arguments), rtol=0, atol=1e-5)


def test_a_trained_adapter_is_loaded_on_the_published_base_which_is_rounded_anew(tmp_path: Path):
    model = adapted(**SCALED, loftq_config=LoftQConfig(loftq_bits=4, loftq_iter=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(outputs(loaded, {"input_ids": TOKENS}), outputs(model, {"input_ids": TOKENS}))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["loftq_config"] == {"loftq_bits": 4, "loftq_iter": 2}
    assert peft.LoraConfig.from_pretrained(tmp_path).loftq_config == written["loftq_config"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "is for linear layers only"),
        ({"loftq_config": {"loftq_bit": 4}}, "did you mean 'loftq_bits'"),
    ],
)
def test_what_cannot_be_rounded_is_said(fields: dict[str, Any], message: str):
    with pytest.raises(AdapterError, match=message):
        adapted(**fields)


def test_a_rounded_base_has_no_second_adapter():
    with pytest.raises(AdapterError, match="'loftq' changes the base model"):
        adapted().add_adapter("other", LoraConfig(target_modules=["q_proj"]))


# On a base that is quantized already. bitsandbytes is not installed here: what it makes of a weight takes its place.


class Params4bit(nn.Parameter):
    """bitsandbytes' parameter, by name, with the rounded numbers themselves in it."""

    quant_state = None


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    package, functional = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = lambda data, quant_state: data
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)


def quantized(build=llama) -> nn.Module:
    model = base(build)
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            module.weight = Params4bit(rounded(module.weight.detach(), 4), requires_grad=False)
    return model


@pytest.fixture
def published(tmp_path: Path) -> Path:
    base().save_pretrained(tmp_path / "published", max_shard_size="4KB")
    assert len(list((tmp_path / "published").glob("*.safetensors"))) > 1
    return tmp_path / "published"


def on_quantized(**fields) -> PeftModel:
    fields = {"target_modules": ["q_proj", "down_proj", "v_proj"], **fields}
    return get_peft_model(quantized(), LoraConfig(**fields))


@pytest.mark.usefixtures("bitsandbytes")
def test_an_adapter_on_a_quantized_base_starts_with_what_was_lost(published: Path):
    model = on_quantized(r=8, lora_alpha=24, target_modules=["q_proj", "v_proj", "down_proj"])
    plain = model.get_base_model().model.layers[0].self_attn.v_proj.lora_B["default"].weight
    replace_lora_weights_loftq(model, published)
    assert not plain.any()  # a layer that is not quantized has lost nothing
    arguments = {"input_ids": TOKENS}
    torch.testing.assert_close(outputs(model, arguments), outputs(base(), arguments), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("bitsandbytes")
def test_a_replacement_that_the_caller_refuses_is_undone(published: Path):
    model, names = on_quantized(), []

    def only_the_first(given: nn.Module, name: str) -> bool:
        assert given is model
        names.append(name)
        return len(names) == 1

    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    replace_lora_weights_loftq(model, published, callback=only_the_first)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {f"base_model.model.{names[0]}.lora_{part}.default.weight" for part in "AB"}
    assert len(names) == 4


@pytest.mark.usefixtures("bitsandbytes")
def test_the_base_is_read_from_where_the_model_came_from(published: Path):
    model = on_quantized()
    model.config._name_or_path = str(published)
    replace_lora_weights_loftq(model)
    assert model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.any()


@pytest.mark.usefixtures("bitsandbytes")
def test_what_cannot_be_replaced_is_said(published: Path, tmp_path: Path):
    with pytest.raises(AdapterError, match="no layer with the adapter 'default' is quantized"):
        replace_lora_weights_loftq(get_peft_model(base(), LoraConfig(target_modules=["q_proj"])), published)
    model = on_quantized()
    with pytest.raises(AdapterError, match="does not say where it was loaded from"):
        replace_lora_weights_loftq(model)
    with pytest.raises(AdapterError, match="nowhere/model: is neither a folder nor in this machine's cache"):
        replace_lora_weights_loftq(model, "nowhere/model")
    with pytest.raises(AdapterError, match=r"holds no .safetensors file"):
        replace_lora_weights_loftq(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="is no safetensors file"):
        replace_lora_weights_loftq(model, tmp_path)
    base(gpt2).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=r"has no model.layers.0.self_attn.q_proj.weight; is it another"):
        replace_lora_weights_loftq(model, tmp_path / "other")
    with pytest.raises(AdapterError, match="call replace_lora_weights_loftq after get_peft_model"):
        on_quantized(init_lora_weights="loftq")


@pytest.mark.usefixtures("bitsandbytes")
def test_a_trained_adapter_is_loaded_on_the_quantized_base_as_it_is(tmp_path: Path):
    model = adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantized(), tmp_path)
    torch.testing.assert_close(outputs(loaded, {"input_ids": TOKENS}), outputs(model, {"input_ids": TOKENS}))
