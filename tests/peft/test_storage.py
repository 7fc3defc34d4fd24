"""The two files: every key is checked, nothing unsafe or damaged is read, nothing is half written."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import (
    get_peft_model_state_dict,
    load_peft_weights,
    read_config,
    set_peft_model_state_dict,
)

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def base(vocabulary: int = 19, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **(sizes | changes)))


def config(**changes) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    get_peft_model(base(), config()).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def refusal(folder: Path, model: torch.nn.Module | None = None) -> str:
    with pytest.raises(AdapterError) as caught:
        PeftModel.from_pretrained(model or base(), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_key_is_named(folder: Path):
    rewrite(folder, lambda state: state.pop(KEY))
    assert f"has no {KEY}" in refusal(folder)


def test_an_extra_key_is_named_with_the_nearest(folder: Path):
    extra = KEY.replace("layers.0", "layers.7")
    rewrite(folder, lambda state: state.update({extra: torch.zeros(2, 8)}))
    assert f"holds {extra}, which this model does not have" in refusal(folder)


def test_a_misspelt_key_is_named_with_the_nearest(folder: Path):
    rewrite(folder, lambda state: state.update({KEY.replace("q_proj", "qproj"): state.pop(KEY)}))
    assert f"has no {KEY}; the nearest key is {KEY.replace('q_proj', 'qproj')}" in refusal(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path):
    message = refusal(folder, base(hidden_size=16))
    assert KEY in message
    assert "[2, 8] in the file, [2, 16] in the model" in message


def test_an_adapter_of_a_deeper_model_is_refused(folder: Path):
    assert "layers.1" in refusal(folder, base(num_hidden_layers=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(folder: Path, value: float):
    rewrite(folder, lambda state: state[KEY].fill_(value))
    assert f"{KEY} holds values that are not finite" in refusal(folder)


def test_a_pickle_is_refused(folder: Path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle, which can run code" in refusal(folder)


def test_a_damaged_file_is_refused(folder: Path):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "is damaged" in refusal(folder)
    path.write_bytes(b"not a safetensors file")
    assert "is damaged" in refusal(folder)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path):
    assert "there is no adapter_model.safetensors here" in refusal(tmp_path)
    with pytest.raises(AdapterError, match=r"there is no adapter_config\.json here"):
        read_config(tmp_path)


def test_a_refused_file_leaves_the_adapter_as_it_was(folder: Path):
    model = get_peft_model(base(), config())
    before = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    state = {key: tensor + 1 for key, tensor in before.items()}
    state[KEY] = torch.full((2, 8), float("nan"))
    with pytest.raises(AdapterError):
        set_peft_model_state_dict(model, state)
    assert all(torch.equal(before[key], tensor) for key, tensor in get_peft_model_state_dict(model).items())


def test_the_file_says_its_format_and_nothing_is_left_beside_it(folder: Path):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["inference_mode"] is True


def test_a_save_that_fails_leaves_the_old_files_and_no_others(folder: Path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = get_peft_model(base(), config())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="too large"):
            model.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_into_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="is a file; name a folder"):
        get_peft_model(base(), config()).save_pretrained(tmp_path / "file")


def test_adapters_that_are_not_named_default_have_a_folder_of_their_own(tmp_path: Path):
    model = get_peft_model(base(), config())
    model.add_adapter("other", config(r=3))
    model.save_pretrained(tmp_path)
    assert read_config(tmp_path / "other").r == 3
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["README.md", "other"]
    assert load_peft_weights(tmp_path).keys() == load_peft_weights(tmp_path / "other").keys()


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_adapters_become_float32_unless_they_are_to_keep_their_dtype(
    folder: Path, base_dtype: torch.dtype
):
    rewrite(folder, lambda state: state.update({key: value.bfloat16() for key, value in state.items()}))
    kept = PeftModel.from_pretrained(base().to(base_dtype), folder, autocast_adapter_dtype=False)
    assert {tensor.dtype for tensor in get_peft_model_state_dict(kept).values()} == {torch.bfloat16}
    assert kept(input_ids=torch.tensor([[1, 2]])).logits.dtype == base_dtype
    trained = PeftModel.from_pretrained(base().to(base_dtype), folder, is_trainable=True)
    assert {tensor.dtype for tensor in get_peft_model_state_dict(trained).values()} == {torch.float32}
    assert all(p.requires_grad for n, p in trained.named_parameters() if "lora_" in n)
    theirs = peft.PeftModel.from_pretrained(base().to(base_dtype), folder)
    assert {p.dtype for n, p in theirs.named_parameters() if "lora_" in n} == {torch.float32}


def test_whole_embeddings_are_saved_where_they_are_adapted_or_resized(tmp_path: Path):
    def embeddings(model: PeftModel) -> set[str]:
        return {
            key
            for key in get_peft_model_state_dict(model)
            if key.endswith(("tokens.weight", "base_layer.weight", "lm_head.weight"))
        }

    prefix = "base_model.model."
    plain = get_peft_model(base(), config())
    assert not embeddings(plain)
    adapted = get_peft_model(base(), config(target_modules=["q_proj", "embed_tokens"]))
    assert embeddings(adapted) == {f"{prefix}model.embed_tokens.base_layer.weight"}

    base().save_pretrained(tmp_path / "base")

    def resized() -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(23, mean_resizing=False)
        return model

    model = get_peft_model(resized(), config())
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    assert embeddings(model) == {f"{prefix}model.embed_tokens.weight", f"{prefix}lm_head.weight"}
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(resized(), tmp_path / "adapter")
    tokens = torch.tensor([[1, 22]])
    assert torch.equal(loaded(input_ids=tokens).logits, model.eval()(input_ids=tokens).logits)
    message = refusal(tmp_path / "adapter")
    assert "[23, 8] in the file, [19, 8] in the model" in message


def test_adapters_injected_without_a_wrapper_have_the_same_states():
    model = inject_adapter_in_model(config(), base())
    assert isinstance(model, LlamaForCausalLM)
    state = get_peft_model_state_dict(model)
    assert KEY.removeprefix("base_model.model.") in state
    short = KEY.removeprefix("base_model.model.")
    before = state[short].clone()
    set_peft_model_state_dict(model, {f"base_model.model.{key}": value + 1 for key, value in state.items()})
    assert torch.equal(get_peft_model_state_dict(model)[short], before + 1)
