"""Which modules a config means: as PEFT, but what means nothing is said."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora.model import LoraModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from peftcli.adapters.defaults import BY_ARCHITECTURE
from peftcli.adapters.targets import find_targets, shortest
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=12, num_attention_heads=2
            )
        )


def names(model: nn.Module, **config) -> list[str]:
    return [site.name for site in find_targets(model, LoraConfig(**config), strict=True)[0]]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "mlp.up_proj"]},
        {"target_modules": ["model.layers.1.self_attn.q_proj"]},
        {"target_modules": ["1.self_attn.q_proj"]},
        {"target_modules": r".*layers\.[12]\..*_proj"},
        {"target_modules": r"model\.layers\.0\.mlp\.(up|down)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-LINEAR"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.mlp\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj", "model.layers.3.self_attn.q_proj"], "layers_to_transform": [2]},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {},
    ],
)
def test_the_modules_are_those_of_peft(llama: nn.Module, config: dict):
    real = LoraModel(llama.__class__(llama.config), peft.LoraConfig(**config), "default")
    assert names(llama, **config) == real.targeted_module_names


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_modules": ["q_prj"]}, r"'q_prj' matches no module; the nearest: q_proj"),
        ({"target_modules": ["q_proj", "v_poj"]}, r"'v_poj' matches no module; the nearest: v_proj"),
        ({"target_modules": r"q_proj"}, "matches no whole module name"),
        (
            {"target_modules": ["q_proj"], "exclude_modules": ["k_prj"]},
            "exclude_modules: 'k_prj' matches no module",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [3, 12]},
            "there is no layer 12; there are 0 to 11",
        ),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": "blocks"},
            "no module is left",
        ),
        ({"target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"]}, "no module is left"),
        ({"target_modules": ["mlp"]}, "is a LlamaMLP; LoRA takes nn.Linear"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["hed"]},
            "modules_to_save: 'hed' matches no module",
        ),
        ({"target_modules": ["q_proj"], "modules_to_save": ["layers"]}, "model.layers is a ModuleList"),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 4}},
            "rank_pattern: 'v_proj' matches no adapted",
        ),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"k": 4}}, "alpha_pattern: 'k' matches no adapted"),
        ({"target_modules": ["q_proj"], "r": 3, "init_lora_weights": "orthogonal"}, "even rank"),
        ({"target_modules": ["embed_tokens"], "init_lora_weights": "pissa"}, "linear layers only"),
    ],
)
def test_what_means_nothing_is_an_error_that_names_the_nearest(llama: nn.Module, config: dict, said: str):
    before = [name for name, _ in llama.named_modules()]
    with pytest.raises(AdapterError, match=said) as caught:
        get_peft_model(llama, LoraConfig(**config))
    assert "\n" not in str(caught.value)
    assert [name for name, _ in llama.named_modules()] == before


def test_loading_from_elsewhere_only_warns_of_names_that_this_model_lacks(llama: nn.Module):
    with pytest.warns(UserWarning, match="'Wqkv' matches no module"):
        sites, _ = find_targets(llama, LoraConfig(target_modules=["q_proj", "Wqkv"]), strict=False)
    assert len(sites) == 12


def test_all_linear_leaves_out_the_head_of_a_classifier():
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    found = names(model, target_modules="all-linear", task_type="SEQ_CLS")
    assert "classifier" not in found
    assert "bert.pooler.dense" in found


def test_a_name_that_also_ends_another_is_written_so_that_it_does_not():
    every = ["a.q", "b.q", "a.v", "b.v", "v"]
    assert shortest({"a.q", "b.q"}, every) == ["q"]
    assert shortest({"a.q", "b.q", "a.v"}, every) == ["a.v", "q"]
    assert shortest({"v"}, every) == "v"  # an expression: the list ["v"] would mean a.v and b.v as well


def test_the_table_of_defaults_is_peft_s():
    assert peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING == BY_ARCHITECTURE


@pytest.mark.parametrize(
    "model_type", ["phi3", "olmo", "distilbert", "mpnet", "starcoder2", "granite", "albert"]
)
def test_architectures_that_peft_does_not_know_have_defaults_too(model_type: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))
    assert model_type not in BY_ARCHITECTURE
    assert names(model)


def test_a_model_without_attention_must_be_told():
    with pytest.raises(AdapterError, match="target_modules has no default for Sequential"):
        names(nn.Sequential(nn.Linear(2, 2)))
