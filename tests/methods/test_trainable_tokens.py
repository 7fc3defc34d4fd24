"""Single tokens, trained: by the method of that name, and beside LoRA by `trainable_token_indices`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.trainable_tokens.config import TrainableTokensConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import shake

VOCABULARY = 19
ROWS = torch.tensor([[3, 1, 4, 7, 3], [9, 2, 6, 5, 0]])
TOKENS = [7, 3]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def gemma() -> Gemma3ForCausalLM:
    """Its embeddings are scaled, and tied to its head."""
    torch.manual_seed(0)
    sizes = SIZES | {"head_dim": 8, "num_key_value_heads": 1}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).eval()


def only(**fields: Any) -> tuple[type, type, dict[str, Any]]:
    return TrainableTokensConfig, peft.TrainableTokensConfig, {"token_indices": TOKENS, **fields}


def beside(indices: Any, **fields: Any) -> tuple[type, type, dict[str, Any]]:
    values = {"target_modules": ["q_proj"], "r": 2, "trainable_token_indices": indices, **fields}
    return LoraConfig, peft.LoraConfig, values


KINDS = {
    "the method": (llama, only()),
    "the method, tied": (lambda: llama(tied=True), only()),
    "the method, on a head": (llama, only(target_modules=["lm_head"])),
    "the method, on both": (llama, only(target_modules=["lm_head", "embed_tokens"])),
    "the method, scaled": (gemma, only()),
    "a list": (llama, beside(TOKENS)),
    "a list, tied": (lambda: llama(tied=True), beside(TOKENS)),
    "a list, scaled": (gemma, beside(TOKENS)),
    "a mapping": (llama, beside({"embed_tokens": [5, 0]})),
    "a mapping, a head": (llama, beside({"lm_head": [5, 0]})),
    "a mapping, both": (llama, beside({"lm_head": [2], "embed_tokens": TOKENS})),
    "a mapping, tied": (lambda: llama(tied=True), beside({"lm_head": [2], "embed_tokens": TOKENS})),
}
every = pytest.mark.parametrize("kind", KINDS)


def ours(kind: str) -> PeftModel:
    make, (config, _, fields) = KINDS[kind]
    return get_peft_model(make(), config(**fields))


def theirs(kind: str) -> Any:
    make, (_, config, fields) = KINDS[kind]
    return peft.get_peft_model(make(), config(**fields))


def logits(model: Any, rows: torch.Tensor = ROWS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=rows, **more).logits


def written(model: Any, rows: torch.Tensor = ROWS, **more: Any) -> torch.Tensor:
    return model.generate(
        input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=8, do_sample=False, **more
    )


def parameters(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()}


# Ours and PEFT's.


@every
def test_names_shapes_and_what_is_trained_are_peft_s(kind: str):
    assert parameters(ours(kind)) == parameters(theirs(kind))


@every
def test_files_go_both_ways(kind: str, tmp_path: Path):
    make, _ = KINDS[kind]
    one, other = ours(kind), theirs(kind)
    for model, folder, reader in (
        (one, tmp_path / "ours", peft.PeftModel),
        (other, tmp_path / "theirs", PeftModel),
    ):
        shake(model)
        model.save_pretrained(folder)
        loaded = reader.from_pretrained(make(), folder)
        torch.testing.assert_close(logits(loaded), logits(model))
        assert torch.equal(written(loaded), written(model))
    files = [load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs")]
    assert {k: v.shape for k, v in files[0].items()} == {k: v.shape for k, v in files[1].items()}


def pair(kind: str, folder: Path) -> tuple[PeftModel, Any]:
    """The same adapter in both."""
    model = ours(kind)
    shake(model)
    model.save_pretrained(folder)
    return model, peft.PeftModel.from_pretrained(KINDS[kind][0](), folder, is_trainable=True)


@every
def test_gradients_are_peft_s(kind: str, tmp_path: Path):
    found = []
    for model in pair(kind, tmp_path):
        model.eval()(input_ids=ROWS, labels=ROWS).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found)


@every
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.filterwarnings("ignore:the merged embeddings differ:UserWarning")
def test_merged_models_are_peft_s(kind: str, safe: bool, tmp_path: Path):
    one, other = (model.eval() for model in pair(kind, tmp_path))
    expected = logits(one)
    torch.testing.assert_close(logits(one.merge_and_unload(safe_merge=safe)), expected)
    if kind != "a mapping, tied":  # there PEFT merges the embeddings' rows into the head as well
        torch.testing.assert_close(logits(other.merge_and_unload(safe_merge=safe)), expected)


# What each call does.


@every
def test_a_fresh_adapter_changes_nothing_and_off_it_is_the_base(kind: str):
    model, bare = ours(kind), logits(KINDS[kind][0]())
    torch.testing.assert_close(logits(model), bare)
    shake(model)
    assert not torch.allclose(logits(model), bare)
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)


@every
def test_merging_and_unmerging_is_exact(kind: str):
    model = ours(kind)
    shake(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@every
def test_unloading_gives_the_base_back(kind: str):
    model = ours(kind)
    base = KINDS[kind][0]()
    shake(model)
    bare = model.unload()
    assert [name for name, _ in bare.named_modules()] == [name for name, _ in base.named_modules()]
    assert torch.equal(logits(bare), logits(base))
    assert (bare.lm_head.weight is bare.model.embed_tokens.weight) == base.config.tie_word_embeddings


@every
def test_merged_weights_are_tied_as_long_as_they_can_be(kind: str):
    model = ours(kind)
    tied, apart = model.get_base_model().config.tie_word_embeddings, kind == "a mapping, tied"
    shake(model)
    expected = logits(model)
    if apart:
        with pytest.warns(UserWarning, match="no longer tied"):
            merged = model.merge_and_unload()
    else:
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == (tied and not apart)
    assert merged.config.tie_word_embeddings == (tied and not apart)


@every
def test_only_the_named_rows_are_trained(kind: str):
    model = ours(kind)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("trainable_tokens_delta" in name or "lora_" in name for name in trained)
    base = KINDS[kind][0]()
    shake(model)
    merged = model.merge_and_unload() if kind != "a mapping, tied" else None
    if merged is not None:
        changed = (merged.model.embed_tokens.weight != base.model.embed_tokens.weight).any(1)
        assert set(changed.nonzero().flatten().tolist()) <= {*TOKENS, 5, 0}


@pytest.mark.parametrize("tied", [False, True])
def test_trained_rows_stand_where_the_base_has_others(tied: bool):
    model = get_peft_model(llama(tied=tied), TrainableTokensConfig(token_indices=TOKENS))
    shake(model)
    base = llama(tied=tied)
    delta = model.base_model.model.model.embed_tokens.trainable_tokens_delta["default"]
    with torch.no_grad():
        base.model.embed_tokens.weight[TOKENS] = delta
    torch.testing.assert_close(logits(model), logits(base))
    assert torch.equal(written(model), written(base))
    tokens = model.get_input_embeddings()
    assert torch.equal(tokens.weight, base.model.embed_tokens.weight)
    assert (tokens.num_embeddings, tokens.embedding_dim) == (VOCABULARY, 16)


# Several adapters.


def several(*, tied: bool) -> PeftModel:
    model = get_peft_model(llama(tied=tied), TrainableTokensConfig(token_indices=TOKENS))
    model.add_adapter("other", TrainableTokensConfig(token_indices=[3, 9, 1]))
    model.add_adapter("apart", TrainableTokensConfig(token_indices=[12]))
    for name in ("default", "other", "apart"):
        model.set_adapter(name)
        shake(model, seed=len(name))
    model.set_adapter("default")
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_each_adapter_has_its_own_tokens(tied: bool, tmp_path: Path):
    model = several(tied=tied)
    model.save_pretrained(tmp_path)
    for name in ("default", "other", "apart"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(
            llama(tied=tied), tmp_path / name if name != "default" else tmp_path
        )
        torch.testing.assert_close(logits(model), logits(alone))
    model.delete_adapter("other")
    model.set_adapter("default")
    alone = PeftModel.from_pretrained(llama(tied=tied), tmp_path)
    torch.testing.assert_close(logits(model), logits(alone))
    model.load_adapter(tmp_path / "other", "again")
    model.set_adapter("again")
    alone = PeftModel.from_pretrained(llama(tied=tied), tmp_path / "other")
    torch.testing.assert_close(logits(model), logits(alone))


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_different_tokens_act_together_and_of_the_same_are_refused(tied: bool):
    model = several(tied=tied)
    model.base_model.set_adapter(["default", "apart"])
    both = logits(model)
    with torch.no_grad():
        base = llama(tied=tied)
        for name in ("default", "apart"):
            layer = model.base_model.model.model.embed_tokens
            base.model.embed_tokens.weight[layer.token_indices[name]] = layer.trainable_tokens_delta[name]
    torch.testing.assert_close(both, logits(base))
    model.merge_adapter()
    torch.testing.assert_close(logits(model), both)
    with pytest.raises(AdapterError, match="token 3 is trained by default and by other"):
        model.merge_adapter(["other"])
    torch.testing.assert_close(logits(model), both)
    model.unmerge_adapter()
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(AdapterError, match="token 3 is trained by default and by other"):
        logits(model)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_batch_may_have_adapters_of_their_own(tied: bool):
    model = several(tied=tied)
    rows = ROWS[[0, 0, 0]]
    mixed = logits(model, rows, adapter_names=["default", "__base__", "other"])
    wrote = written(model, rows, adapter_names=["default", "__base__", "other"])
    for row, name in ((0, "default"), (2, "other")):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row : row + 1], logits(model, ROWS[:1]))
        assert torch.equal(wrote[row : row + 1], written(model, ROWS[:1]))
    torch.testing.assert_close(mixed[1:2], logits(llama(tied=tied), ROWS[:1]))


@pytest.mark.parametrize("kind", ["a list", "a list, tied", "a mapping, both"])
def test_lora_s_rows_mix_as_in_peft(kind: str, tmp_path: Path):
    one, other = (model.eval() for model in pair(kind, tmp_path))
    names = ["default", "__base__"]
    found = logits(one, adapter_names=names)
    torch.testing.assert_close(found, logits(other, adapter_names=names))
    torch.testing.assert_close(found, torch.cat([logits(one)[:1], logits(KINDS[kind][0]())[1:]]))


# Bases and files.


@pytest.mark.parametrize("kind", ["the method, tied", "a list"])
def test_tokens_that_were_added_are_all_that_is_saved(kind: str, tmp_path: Path):
    make, (config, _, fields) = KINDS[kind]
    key = "token_indices" if "method" in kind else "trainable_token_indices"

    def resized() -> Any:
        base = make()
        base.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
        return base

    model = get_peft_model(resized(), config(**fields | {key: [VOCABULARY, VOCABULARY + 1]}))
    shake(model)
    model.save_pretrained(tmp_path)
    rows = torch.tensor([[VOCABULARY, 3, VOCABULARY + 1, 4]])
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert max(len(tensor) for tensor in saved.values()) <= 16  # and not the vocabulary's 21
    torch.manual_seed(5)  # other random rows for what is new
    loaded = PeftModel.from_pretrained(resized(), tmp_path)
    hidden = [each.get_base_model().model(rows).last_hidden_state for each in (model, loaded)]
    torch.testing.assert_close(*hidden)


def test_a_base_in_half_precision_has_rows_in_single_unless_told(tmp_path: Path):
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = get_peft_model(
            llama(tied=True).to(torch.bfloat16),
            TrainableTokensConfig(token_indices=TOKENS),
            autocast_adapter_dtype=autocast,
        )
        embedding = model.get_input_embeddings()
        assert embedding.trainable_tokens_delta["default"].dtype == dtype
        shake(model)
        assert logits(model).dtype == torch.bfloat16
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(
            llama(tied=True).to(torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast
        )
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("kind", ["the method, tied", "a list, tied", "a mapping, both"])
def test_without_memory_first_it_loads_the_same(kind: str, tmp_path: Path):
    model = ours(kind)
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(KINDS[kind][0](), tmp_path, low_cpu_mem_usage=True)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.equal(logits(loaded), logits(model))
    copied = copy.deepcopy(loaded)
    assert torch.equal(logits(copied), logits(model))


@pytest.mark.parametrize("kind", ["the method, tied", "a list, tied"])
def test_a_tied_head_trains_the_embeddings_rows_and_no_others(kind: str):
    model = ours(kind)
    deltas = [name for name, _ in model.named_parameters() if "trainable_tokens_delta" in name]
    assert deltas == [name for name in deltas if "embed_tokens" in name]
    assert len(deltas) == 1
    row = model(inputs_embeds=torch.randn(1, 2, 16)).logits[0, 0, TOKENS[0]]
    row.backward()
    gradient = dict(model.named_parameters())[deltas[0]].grad
    assert gradient is not None
    assert gradient[0].any()


def test_a_copy_and_a_move_keep_what_is_tied():
    model = ours("the method, tied").to(torch.float64)
    shake(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.get_input_embeddings().trainable_tokens_delta["default"].add_(1)
    hidden = torch.randn(1, 2, 16, dtype=torch.float64)
    moved = copied.get_base_model().lm_head(hidden) - model.get_base_model().lm_head(hidden)
    expected = F.linear(hidden, torch.ones(2, 16, dtype=torch.float64))
    torch.testing.assert_close(moved[..., TOKENS], expected)


@pytest.mark.parametrize("kind", ["the method, tied", "a list, tied", "a mapping, both"])
def test_checkpointed_layers_and_training_steps_agree_with_peft(kind: str, tmp_path: Path):
    found = []
    for model in pair(kind, tmp_path):
        model.train()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(3):
            model(input_ids=ROWS, labels=ROWS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(logits(model.eval()))
    torch.testing.assert_close(*found)


def test_random_rows_are_as_many_and_as_wide(tmp_path: Path):
    model = get_peft_model(llama(), TrainableTokensConfig(token_indices=TOKENS, init_weights=False))
    delta = model.get_input_embeddings().trainable_tokens_delta["default"]
    assert delta.shape == (2, 16)
    assert not torch.allclose(delta, model.get_input_embeddings().get_base_layer().weight[TOKENS])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_weights"] is False


# What is refused.


def test_tokens_that_cannot_be_are_refused():
    for value, message in (
        ([3, 3], "names token 3 more than once"),
        ([-1], "must hold token ids from 0 up, not -1"),
        ([True], "must hold token ids from 0 up"),
        ([1.5], "must hold token ids from 0 up"),
        ([], "is an empty list"),
        ("3", "must be a list of token ids"),
    ):
        with pytest.raises(AdapterConfigError, match=message):
            TrainableTokensConfig(token_indices=value)
        with pytest.raises(AdapterConfigError, match=message):
            LoraConfig(trainable_token_indices=value)
        with pytest.raises(AdapterConfigError, match=message):
            LoraConfig(trainable_token_indices={"embed_tokens": value})
    with pytest.raises(AdapterConfigError, match="is an empty list"):
        TrainableTokensConfig()


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_beyond_the_vocabulary_are_refused_and_nothing_is_changed(tied: bool):
    message = r"there is no token 19; the vocabulary of model\.embed_tokens is 19 \(0 to 18\)"
    base = llama(tied=tied)
    for config in (
        TrainableTokensConfig(token_indices=[3, 19]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[19]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [19]}),
    ):
        with pytest.raises(AdapterError, match=message):
            get_peft_model(base, config)
    assert [name for name, _ in base.named_modules()] == [n for n, _ in llama(tied=tied).named_modules()]
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_modules_that_have_no_tokens_or_other_adapters_are_refused():
    for fields, message in (
        ({"trainable_token_indices": {"emb_tokens": [1]}}, "'emb_tokens' matches no module.*embed_tokens"),
        ({"trainable_token_indices": {"q_proj": [1]}}, "has an adapter"),
        ({"trainable_token_indices": {"norm": [1]}}, "is a LlamaRMSNorm, which has no rows for tokens"),
        ({"target_modules": ["embed_tokens"], "trainable_token_indices": [1]}, "has an adapter"),
        ({"modules_to_save": ["embed_tokens"], "trainable_token_indices": [1]}, "is trained whole"),
    ):
        values = {"target_modules": ["q_proj"], **fields}
        with pytest.raises(AdapterError, match=message):
            get_peft_model(llama(), LoraConfig(**values))


def test_a_file_for_a_larger_vocabulary_is_refused(tmp_path: Path):
    base = llama()
    base.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    get_peft_model(base, TrainableTokensConfig(token_indices=[VOCABULARY])).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="there is no token 19"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_values_that_are_not_finite_do_not_merge():
    model = ours("the method")
    with torch.no_grad():
        model.get_input_embeddings().trainable_tokens_delta["default"][0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert not model.get_input_embeddings().merged
