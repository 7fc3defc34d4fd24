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
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
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
        ({"target_modules": r"q_proj"}, "is read as an expression over whole names"),
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


def test_a_name_that_was_meant_as_a_list_of_one_is_told_so(llama: nn.Module):
    with pytest.raises(AdapterError, match=r"for a name write \[q_proj\]"):
        get_peft_model(llama, LoraConfig(target_modules="q_proj"))


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


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LATENT = {"num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8}


def tiny(model_type: str, **sizes) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES | sizes))


@pytest.mark.parametrize(
    ("model_type", "sizes", "targets"),
    [
        ("olmo", {}, ["q_proj", "v_proj"]),
        ("phi3", {"pad_token_id": 0}, ["qkv_proj"]),
        ("distilbert", {}, ["q_lin", "v_lin"]),
        ("mpnet", {}, ["q", "v"]),
        ("albert", {}, ["query", "value"]),
        ("modernbert", {}, ["Wqkv"]),
        ("qwen3_moe", {"num_experts": 4}, ["q_proj", "v_proj"]),
        ("deepseek_v3", LATENT, ["kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"]),
        (
            "qwen3_next",
            {"num_experts": 4, "layer_types": ["linear_attention", "full_attention"]},
            ["in_proj_qkvz", "q_proj", "v_proj"],
        ),
        ("mamba", {}, ["in_proj"]),
        ("jamba", {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}, ["q_proj", "v_proj"]),
        ("squeezebert", {"embedding_size": 16}, ["post_attention.conv1d"]),
        ("fnet", {"intermediate_size": 32}, ["intermediate.dense"]),
        ("xlnet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}, ["layer_1"]),
    ],
)
def test_what_peft_does_not_know_has_its_queries_and_values_adapted_or_else_what_its_blocks_read(
    model_type: str, sizes: dict, targets: list[str]
):
    model = tiny(model_type, **sizes)
    assert model_type not in BY_ARCHITECTURE
    assert find_targets(model, LoraConfig(), strict=True)[1] == targets


def test_of_a_model_that_sees_the_text_part_is_adapted():
    with torch.device("meta"):
        vision = CLIPVisionConfig(**SIZES, image_size=28, patch_size=14)
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SIZES))
        )
    sites, targets = find_targets(model, LoraConfig(), strict=True)
    assert targets == r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    assert len(sites) == 4


def test_the_second_adapter_has_the_same_defaults_as_the_first():
    model = tiny("olmo")
    first = names(model)
    get_peft_model(model, LoraConfig())
    assert names(model) == first


class Block(nn.Module):
    """Someone's own attention, in a model of their own."""

    def __init__(self, *layers: str) -> None:
        super().__init__()
        for name in layers:
            self.add_module(name, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (["W_pack", "o_proj"], ["0.W_pack"]),
        (["wq", "wk", "wv", "wo"], ["0.wq", "0.wv"]),
        (["to_q", "to_kv", "to_out"], ["0.to_q", "0.to_kv"]),
        (["linear_qkv", "linear_proj"], ["0.linear_qkv"]),
        (["quick", "vivid", "values_head"], None),
    ],
)
def test_attention_is_known_by_the_names_of_its_queries_and_values(
    layers: list[str], found: list[str] | None
):
    model = nn.Sequential(Block(*layers))
    if found is None:
        with pytest.raises(AdapterError, match="no default for Sequential"):
            names(model)
    else:
        assert names(model) == found


def test_a_model_without_attention_must_be_told():
    with pytest.raises(AdapterError, match="target_modules has no default for Sequential"):
        names(nn.Sequential(nn.Linear(2, 2)))


def test_all_linear_leaves_out_what_mamba_reads_past_the_module_and_naming_it_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 23, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    model = get_peft_model(MambaForCausalLM(MambaConfig(**sizes)), LoraConfig(target_modules="all-linear"))
    assert model.peft_config["default"].target_modules == ["in_proj", "x_proj"]
    for name in ("dt_proj", "out_proj"):
        with pytest.raises(AdapterError, match="read this layer's weight past the adapter"):
            get_peft_model(MambaForCausalLM(MambaConfig(**sizes)), LoraConfig(target_modules=[name]))
