"""Adapters made of others, without training: PEFT's results on the same weights, and what they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterError
from peftcli.methods.ia3.config import IA3Config
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.scaling import rescale_adapter_scale
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import get_peft_model_state_dict
from tests.methods.cases import Net, shake

TOKENS = torch.tensor([[1, 2, 3]])
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
QV = ["q_proj", "v_proj"]


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **SIZES))


def shaken(model: Any) -> Any:
    """Three adapters with weights of their own; the same in both libraries."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in sorted(model.named_parameters()):
        if any(f".{adapter}" in name for adapter in ("one", "two", "three")) and (
            "lora_" in name or "ia3_" in name
        ):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def both(make: Any = base, kind: str = "LoraConfig", **fields: dict[str, Any]) -> tuple[PeftModel, Any]:
    """Ours and PEFT's model with the same adapters; `fields` are each adapter's."""
    ours, theirs = {"LoraConfig": LoraConfig, "IA3Config": IA3Config}[kind], getattr(peft, kind)
    names = list(fields)
    models = []
    for config, get in ((ours, get_peft_model), (theirs, peft.get_peft_model)):
        model = get(make(), config(**fields[names[0]]), names[0])
        for name in names[1:]:
            model.add_adapter(name, config(**fields[name]))
        models.append(shaken(model))
    return models[0], models[1]


def delta(model: Any, adapter: str) -> list[torch.Tensor]:
    """What an adapter adds to each weight."""
    return [
        module.get_delta_weight(adapter).detach()
        for module in model.modules()
        if hasattr(module, "get_delta_weight") and adapter in module.scaling
    ]


SVD, OF_FACTORS = ["svd", "ties_svd", "magnitude_prune_svd"], ["linear", "ties", "magnitude_prune"]
RANDOM = ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"]


@pytest.mark.parametrize("kind", [*SVD, *OF_FACTORS, *RANDOM, "cat"])
@pytest.mark.parametrize("weights", [[0.7, 0.4], [1.5, -0.5]])
def test_a_combination_is_peft_s(kind: str, weights: list[float], monkeypatch: pytest.MonkeyPatch):
    def drawn(share: torch.Tensor) -> torch.Tensor:
        """What DARE drops is random: here it is the same in both libraries."""
        return (torch.rand(share.shape, generator=torch.Generator().manual_seed(5)) < share).to(share)

    monkeypatch.setattr(torch, "bernoulli", drawn)
    fields = {"r": 4, "lora_alpha": 6, "target_modules": QV}
    ours, theirs = both(one=fields, two=fields | {"lora_alpha": 2})
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], weights, "sum", combination_type=kind, density=0.5)
    for one, other in zip(delta(ours, "sum"), delta(theirs, "sum"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert ours.peft_config["sum"].r == theirs.peft_config["sum"].r
    assert set(ours.peft_config["sum"].target_modules) == theirs.peft_config["sum"].target_modules
    assert ours.active_adapters == ["one"]
    names = {name for name, p in ours.named_parameters() if ".sum" in name and p.requires_grad}
    assert not names


@pytest.mark.parametrize("kind", ["svd", "cat"])
def test_adapters_of_other_ranks_and_layers_add_up_exactly(kind: str):
    ours, theirs = both(
        one={"r": 2, "target_modules": QV},
        two={"r": 3, "lora_alpha": 9, "target_modules": ["q_proj", "k_proj"]},
    )
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], [0.3, -1.2], "sum", combination_type=kind, svd_rank=5)
        model.set_adapter("sum")
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-4, atol=1e-5)
    for layer in ours.base_model.layers():
        wanted = sum(
            layer.get_delta_weight(name) * weight
            for name, weight in (("one", 0.3), ("two", -1.2))
            if name in layer.scaling
        )
        torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, rtol=1e-4, atol=1e-5)


def test_a_clamp_and_the_frequency_of_signs_are_peft_s():
    fields = {"r": 4, "target_modules": QV}
    ours, theirs = both(one=fields, two=fields, three=fields)
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], [1, 1], "clamped", svd_clamp=0.8, svd_full_matrices=False)
        model.add_weighted_adapter(
            ["one", "two", "three"],
            [1, 1, 0.5],
            "voted",
            "ties",
            density=0.4,
            majority_sign_method="frequency",
        )
    for name in ("clamped", "voted"):
        for one, other in zip(delta(ours, name), delta(theirs, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_convolutions_and_embeddings_combine_as_peft_s(kind: str):
    # PEFT's own svd does not put a Conv3d's kernel back into its shape.
    targets = ["emb", "mid", "conv2"] if kind == "svd" else ["emb", "mid", "conv2", "conv3"]
    torch.manual_seed(0)
    prototype = Net()
    fields = {"r": 2, "target_modules": targets}

    def net() -> nn.Module:
        fresh = Net()
        fresh.load_state_dict(prototype.state_dict())
        return fresh

    ours, theirs = both(net, one=fields, two=fields)
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], [0.5, 0.8], "sum", combination_type=kind)
    for one, other in zip(delta(ours, "sum"), delta(theirs, "sum"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_combination_is_saved_and_loaded_where_ranks_differ_by_layer(tmp_path: Path):
    fields = {"r": 2, "target_modules": QV, "rank_pattern": {"layers.1.self_attn.q_proj": 3}}
    model = shaken(get_peft_model(base(), LoraConfig(**fields), "one"))
    model.add_adapter("two", LoraConfig(**fields, use_rslora=True))
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "sum", combination_type="linear")
    model.set_adapter("sum")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "sum")
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "sum")
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS).logits)


def test_a_trained_head_goes_into_the_combination():
    model = get_peft_model(base(), LoraConfig(target_modules=QV), "one")
    model.add_adapter("two", LoraConfig(target_modules=QV, modules_to_save=["lm_head"]))
    shake(model)
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "sum")
    head = model.get_base_model().lm_head
    assert torch.equal(head.modules_to_save["sum"].weight, head.modules_to_save["two"].weight)
    model.add_adapter("three", LoraConfig(target_modules=QV, modules_to_save=["lm_head"]))
    with pytest.raises(AdapterError, match="two, three each have their own copy"):
        model.add_weighted_adapter(["two", "three"], [1, 1], "no")


def test_what_cannot_be_combined_is_refused_and_leaves_nothing_behind():
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=QV), "one")
    model.add_adapter("two", LoraConfig(r=3, target_modules=QV))
    model.add_adapter("dora", LoraConfig(r=2, target_modules=QV, use_dora=True))
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["one", "x"], {}, "there is no adapter 'x'"),
        (
            ["one", "two"],
            {"combination_type": "linear"},
            r"needs adapters of one rank, not \[2, 3\]; use svd or cat",
        ),
        (["one", "two"], {"combination_type": "tiez"}, "did you mean 'ties'"),
        (["one", "two"], {"combination_type": "ties_svd"}, "density must be from 0 to 1"),
        (["one", "dora"], {}, "DoRA"),
    ]
    for adapters, options, words in cases:
        with pytest.raises(AdapterError, match=words):
            model.add_weighted_adapter(adapters, [1.0, 1.0], "sum", **options)
    with pytest.raises(AdapterError, match="2 adapters, 1 weights"):
        model.add_weighted_adapter(["one", "two"], [1.0], "sum")
    with pytest.raises(AdapterError, match="already"):
        model.add_weighted_adapter(["one"], [1.0], "two")
    assert list(model.peft_config) == ["one", "two", "dora"]
    assert not [name for name, _ in model.named_parameters() if ".sum" in name]


def test_ia3_s_scales_add_up_as_peft_s():
    fields = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    ours, theirs = both(kind="IA3Config", one=fields, two=fields)
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], [0.3, 0.6], "sum")
        model.set_adapter("sum")
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits)


def test_a_method_without_such_an_operation_does_not_offer_it():
    model = get_peft_model(base(), IA3Config(target_modules=QV, feedforward_modules=[]))
    with pytest.raises(AttributeError, match="subtract_mutated_init"):
        model.subtract_mutated_init({}, "default")


# From an adapter that changed its base to one for the base as it was.


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}])
def test_the_difference_to_the_start_is_a_plain_adapter_for_the_base_as_it_was(
    start: str, more: dict[str, Any], tmp_path: Path
):
    fields = {"r": 2, "target_modules": QV, "init_lora_weights": start, "task_type": "CAUSAL_LM"} | more
    model = get_peft_model(base(), LoraConfig(**fields)).eval()
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide does
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    model.peft_config["default"].init_lora_weights = start
    trained = model(TOKENS).logits
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    for load in (PeftModel.from_pretrained, peft.PeftModel.from_pretrained):
        plain = load(base(), tmp_path / "plain").eval()
        assert plain.peft_config["default"].r == 4
        torch.testing.assert_close(plain(TOKENS).logits, trained, rtol=1e-4, atol=1e-5)


def test_the_difference_to_an_adapter_of_the_model_is_peft_s():
    fields = {"r": 2, "target_modules": QV}
    ours, theirs = both(one=fields, two=fields)
    one = ours.subtract_mutated_init(get_peft_model_state_dict(ours, adapter_name="one"), "two")
    state = peft.get_peft_model_state_dict(theirs, adapter_name="one")
    other = theirs.base_model.subtract_mutated_init(state, "two", {})
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


# How strongly adapters act.


def test_rescaling_lasts_as_long_as_its_context_and_is_peft_s():
    from peft.helpers import rescale_adapter_scale as theirs_rescaled

    ours, theirs = both(one={"r": 2, "target_modules": QV})
    before = ours(TOKENS).logits
    with rescale_adapter_scale(ours, 0.3), theirs_rescaled(theirs, 0.3):
        torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits)
        assert not torch.equal(ours(TOKENS).logits, before)
    assert torch.equal(ours(TOKENS).logits, before)
    with rescale_adapter_scale(ours, 0), ours.disable_adapter():
        pass
    with pytest.raises(TypeError, match="must be a number"), rescale_adapter_scale(ours, "1"):
        pass
    with pytest.raises(AdapterError, match="no LoRA layers"), rescale_adapter_scale(base(), 1):
        pass
