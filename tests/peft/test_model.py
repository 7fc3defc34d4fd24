"""PeftModel: several adapters, heads, merging, and the attributes that people's code reaches for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.layer import Linear
from peftcli.peft import model as peft_model
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import get_peft_model_state_dict

TOKENS = torch.tensor([[1, 2, 3]])


def base(dtype: torch.dtype = torch.float32, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **(sizes | changes))).to(dtype).eval()


def config(**changes) -> LoraConfig:
    fields = {
        "r": 2,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    return LoraConfig(**(fields | changes))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("CAUSAL_LM", "PeftModelForCausalLM"),
        ("SEQ_2_SEQ_LM", "PeftModelForSeq2SeqLM"),
        ("FEATURE_EXTRACTION", "PeftModelForFeatureExtraction"),
        (None, "PeftModel"),
    ],
)
def test_each_task_has_its_class(task: str | None, name: str):
    assert type(get_peft_model(base(), config(task_type=task))) is getattr(peft_model, name)


def test_a_task_without_a_class_writes_its_base_s_class(tmp_path: Path):
    get_peft_model(base(), config(task_type=None)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert loaded.peft_config["default"].auto_mapping == {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }


def test_names_that_people_s_code_reaches_for():
    model = get_peft_model(base(), config(r=2, lora_alpha=6))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, Linear)
    assert isinstance(layer.base_layer, torch.nn.Linear)
    assert layer.lora_A["default"].weight.shape == (2, 16)
    assert layer.scaling["default"] == 3.0
    assert (layer.r["default"], layer.lora_alpha["default"], layer.merged_adapters) == (2, 6, [])
    assert layer.get_delta_weight("default").shape == layer.weight.shape == (16, 16)
    assert model.active_adapter == "default"
    assert model.active_adapters == ["default"]
    assert model.config is model.get_base_model().config
    assert len(model.targeted_module_names) == 2
    assert model.get_base_model().peft_config is model.peft_config


def test_the_factor_can_be_changed_and_given_back():
    layer = get_peft_model(base(), config(lora_alpha=6)).base_model.model.model.layers[0].self_attn.q_proj
    layer.scale_layer(2)
    assert layer.scaling["default"] == 6
    layer.unscale_layer(4)
    assert layer.scaling["default"] == 1.5
    layer.unscale_layer()
    assert layer.scaling["default"] == 3
    layer.set_scale("default", 5)
    assert layer.scaling["default"] == 15


def test_the_caller_s_config_is_not_changed():
    given = config(target_modules="all-linear", modules_to_save=["lm_head"])
    before = given.to_dict()
    get_peft_model(base(), given)
    assert given.to_dict() == before


def test_two_active_adapters_add_up_and_merge_to_the_same():
    model = get_peft_model(base(torch.float64), config())
    model.add_adapter("other", config(target_modules=["q_proj", "k_proj"], r=3))
    model.set_adapter(["default", "other"])
    both = model(input_ids=TOKENS).logits
    model.merge_adapter(["other"])
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=TOKENS).logits, both, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    assert torch.equal(model(input_ids=TOKENS).logits, both)


def test_setting_another_adapter_unmerges_first_and_says_so():
    model = get_peft_model(base(), config())
    model.add_adapter("other", config())
    plain = base()(input_ids=TOKENS).logits
    model.merge_adapter()
    with pytest.warns(UserWarning, match="unmerged before others"):
        model.set_adapter("other")
    with model.disable_adapter():
        assert torch.equal(model(input_ids=TOKENS).logits, plain)


def test_switching_adapters_off_while_merged_gives_the_base():
    model = get_peft_model(base(), config())
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(input_ids=TOKENS).logits, base()(input_ids=TOKENS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_into_half_precision_rounds_once_and_unmerges_exactly(dtype: torch.dtype):
    model = get_peft_model(base(dtype), config(r=8))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    original = layer.base_layer.weight.clone()
    exact = original.double() + layer.get_delta_weight("default").double()
    model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, exact.to(dtype))
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, original)


def test_a_broken_adapter_is_not_merged_with_safe_merge():
    model = get_peft_model(base(), config())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight[0, 0] = float("inf")
    original = layer.base_layer.weight.clone()
    with pytest.raises(AdapterError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, original)
    assert not layer.merged


def test_merging_an_adapted_embedding_leaves_the_tied_head_alone():
    model = get_peft_model(base(tie_word_embeddings=True), config(target_modules=["embed_tokens"]))
    assert model.lm_head.weight is model.get_base_model().model.embed_tokens.weight
    expected = model(input_ids=TOKENS).logits
    head = model.lm_head.weight.clone()
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    assert torch.equal(merged.lm_head.weight, head)
    assert merged.config.tie_word_embeddings is False
    torch.testing.assert_close(merged(input_ids=TOKENS).logits, expected)


def test_unmerging_ties_the_head_again():
    model = get_peft_model(base(tie_word_embeddings=True), config(target_modules=["embed_tokens"]))
    model.merge_adapter()
    model.unmerge_adapter()
    assert model.lm_head.weight is model.get_base_model().model.embed_tokens.base_layer.weight


def bert(kind=BertForSequenceClassification):
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return kind(BertConfig(**sizes, num_hidden_layers=1, num_labels=3))


def test_a_classifier_s_head_is_trained_and_saved_whole(tmp_path: Path):
    model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=2))
    assert isinstance(model.base_model.model.classifier, ModulesToSaveWrapper)
    assert model.modules_to_save == {"classifier", "score"}
    state = get_peft_model_state_dict(model)
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= set(state)
    model.save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(bert(), tmp_path).modules_to_save == {"classifier", "score"}


def test_distilbert_s_two_heads_are_both_saved():
    sizes = {"vocab_size": 19, "dim": 8, "hidden_dim": 8, "n_heads": 2, "n_layers": 1}
    model = get_peft_model(
        DistilBertForSequenceClassification(DistilBertConfig(**sizes)), LoraConfig(task_type="SEQ_CLS")
    )
    saved = {key for key in get_peft_model_state_dict(model) if "classifier" in key}
    assert {key.split(".")[2] for key in saved} == {"classifier", "pre_classifier"}


def test_the_head_of_question_answering_is_trained():
    model = get_peft_model(bert(BertForQuestionAnswering), LoraConfig(task_type="QUESTION_ANS"))
    assert model.base_model.model.qa_outputs.modules_to_save["default"].weight.requires_grad


def test_a_head_under_another_name_is_pointed_out():
    with pytest.warns(UserWarning, match="no head named classifier or score"):
        get_peft_model(base(), config(task_type="SEQ_CLS"))


def test_each_adapter_has_its_own_head():
    model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS")).eval()
    model.add_adapter("other", LoraConfig(task_type="SEQ_CLS"))
    head = model.base_model.model.classifier
    with torch.no_grad():
        head.modules_to_save["other"].bias.fill_(100)
    first = model(input_ids=TOKENS).logits
    model.set_adapter("other")
    assert (model(input_ids=TOKENS).logits > first + 50).all()
    assert not head.modules_to_save["default"].weight.requires_grad
    with model.disable_adapter():
        assert torch.equal(model(input_ids=TOKENS).logits, bert().eval()(input_ids=TOKENS).logits)
    with pytest.raises(AdapterError, match="only one of"):
        model.set_adapter(["default", "other"])


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "keys", "training"])
def test_names_that_would_break_keys_or_folders_are_refused(name: str):
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        get_peft_model(base(), config(), adapter_name=name)


def test_adapters_that_cannot_live_together_are_refused():
    model = get_peft_model(base(attention_bias=True), config(bias="all"))
    with pytest.raises(AdapterError, match="already; choose another name"):
        model.add_adapter("default", config())
    with pytest.raises(AdapterError, match="only one adapter of a model can train biases"):
        model.add_adapter("other", config(bias="lora_only"))
    with pytest.raises(AdapterError, match="'pissa' changes the base model"):
        model.add_adapter("other", config(init_lora_weights="pissa"))
    with pytest.raises(AdapterError, match="there is no adapter 'defalt'; did you mean 'default'"):
        model.set_adapter("defalt")


def test_an_adapter_that_does_not_fit_is_not_left_behind(tmp_path: Path):
    get_peft_model(base(), config()).save_pretrained(tmp_path)
    model = get_peft_model(base(hidden_size=32), config())
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(AdapterError, match="another shape"):
        model.load_adapter(tmp_path, "other")
    assert list(model.peft_config) == ["default"]
    assert [name for name, _ in model.named_parameters()] == names
    assert model.active_adapters == ["default"]


def test_a_loaded_adapter_acts_once_it_is_set(tmp_path: Path):
    first = get_peft_model(base(), config())
    first.save_pretrained(tmp_path)
    wanted = first(input_ids=TOKENS).logits
    bare = base()
    torch.manual_seed(1)
    model = get_peft_model(bare, config())
    assert model.load_adapter(tmp_path, "other") == ([], [])
    assert not torch.equal(model(input_ids=TOKENS).logits, wanted)
    model.set_adapter("other")
    assert torch.equal(model(input_ids=TOKENS).logits, wanted)


def test_generating_obeys_the_adapter_and_the_model_s_settings():
    model = get_peft_model(base(), config(init_lora_weights=True))
    model.generation_config.max_new_tokens = 4
    model.generation_config.eos_token_id = None
    made = model.generate(input_ids=TOKENS, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 7)
    settings = model.generation_config
    model.generation_config = settings
    assert model.get_base_model().generation_config is settings


def test_inputs_take_gradients_where_activations_are_checkpointed():
    bare = base()
    bare.activation_checkpointing_enable({"use_reentrant": True})
    model = get_peft_model(bare, config()).train()
    model(input_ids=TOKENS).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_lora_dropout_that_does_nothing_is_said():
    with pytest.warns(UserWarning, match="does not act on embeddings"):
        get_peft_model(base(), config(target_modules=["embed_tokens"], lora_dropout=0.1))
    with pytest.warns(UserWarning, match="fan_in_fan_out has no effect"):
        get_peft_model(base(), config(fan_in_fan_out=True))


def test_groups_are_adapted_but_not_merged_and_other_paddings_are_refused():
    net = torch.nn.Sequential(
        torch.nn.Conv1d(4, 4, 3, groups=2), torch.nn.Conv1d(4, 4, 3, padding_mode="circular", padding=1)
    )
    with pytest.raises(AdapterError, match="pads with 'circular'"):
        get_peft_model(net, LoraConfig(target_modules=["1"], r=2))
    with pytest.raises(AdapterError, match="choose a rank that they divide, not 3"):
        get_peft_model(net, LoraConfig(target_modules=["0"], r=3))
    model = get_peft_model(net, LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    assert model(torch.ones(1, 4, 9)).shape == (1, 4, 7)
    with pytest.raises(AdapterError, match="cannot be merged"):
        model.merge_adapter()


def test_a_seed_gives_the_first_adapter_of_a_process_what_it_gives_every_later_one():
    made = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from peftcli import LoraConfig, get_peft_model

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
def drawn():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=19, **sizes))
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", lora_dropout=0.1))
    return [each.clone() for each in model.parameters() if each.requires_grad]
print(all(map(torch.equal, drawn(), drawn())))
"""
    told = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True"]
