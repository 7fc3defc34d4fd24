"""aLoRA: an adapter that acts from its invocation tokens on, and leaves what comes before to the base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterConfigError, AdapterError, DataError
from peftcli.methods.lora.activation import last_calls, uncalled
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, gpt2, shake

CALL = [7, 8]
#                      none           at once         twice, cut short   at the end
ROWS = torch.tensor([[1, 2, 7, 3, 8], [7, 8, 2, 3, 4], [7, 8, 7, 8, 7], [8, 7, 7, 7, 8]])
OFFSETS = [0, 5, 3, 2]
ALORA: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "k_proj", "up_proj"],
    "alora_invocation_tokens": CALL,
    "r": 4,
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=19,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def adapted(base: nn.Module | None = None, **fields: Any) -> PeftModel:
    model = get_peft_model(base or llama(), LoraConfig(**ALORA | fields))
    shake(model)
    return model.eval()


def theirs(**fields: Any) -> Any:
    model = peft.get_peft_model(llama(), peft.LoraConfig(**ALORA | fields))
    shake(model)
    return model.eval()


def logits(model: Any, rows: torch.Tensor = ROWS, **more: Any) -> torch.Tensor:
    return model(input_ids=rows, **more).logits


def written(model: Any, rows: torch.Tensor = ROWS, **more: Any) -> torch.Tensor:
    settings = {"max_new_tokens": 6, "do_sample": False, **more}
    return model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **settings)


def test_the_last_invocation_counts():
    assert last_calls(ROWS, CALL).tolist() == OFFSETS
    assert last_calls(ROWS[:, :1], CALL).tolist() == [0] * 4
    assert last_calls(ROWS, [7]).tolist() == [3, 5, 1, 2]


def test_it_acts_from_there_on_as_lora_does_and_before_it_is_the_base():
    model, base = adapted(), llama().eval()
    plain = adapted(alora_invocation_tokens=None)
    plain.load_state_dict(model.state_dict())
    found, bare = logits(model), logits(base)
    for row, offset in enumerate(OFFSETS):
        assert torch.equal(found[row, : 5 - offset], bare[row, : 5 - offset])
        assert not offset or not torch.allclose(found[row, -1], bare[row, -1])
    torch.testing.assert_close(found[1], logits(plain)[1])  # called at once, it is LoRA


def test_peft_gives_the_same_both_ways(tmp_path: Path):
    ours = adapted()
    ours.save_pretrained(tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(ours))
    assert torch.equal(written(loaded), written(ours))
    other = theirs(lora_dropout=0.1, bias="lora_only")
    other.save_pretrained(tmp_path / "theirs")
    back = PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert back.peft_config["default"].alora_invocation_tokens == CALL
    torch.testing.assert_close(logits(back), logits(other))


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_return_sequences": 1}], ids=str)
def test_generating_step_by_step_goes_on_where_the_prompt_called_it(options: dict[str, Any]):
    model = adapted()
    found = written(model, **options)
    for row, offset in enumerate(OFFSETS):
        with model.disable_adapter():
            bare = written(model, ROWS[row : row + 1], **options)
        alone = written(model, ROWS[row : row + 1], **options)
        assert torch.equal(found[row : row + 1], alone)
        assert offset or torch.equal(alone, bare)  # not called, it is the base


def test_a_cache_that_the_base_has_filled_serves_the_adapter():
    model = adapted()
    rows = ROWS[2:3]
    with model.disable_adapter():
        cache = model(input_ids=rows[:, :2], use_cache=True).past_key_values
    rest = logits(model, rows[:, 2:], past_key_values=cache)
    torch.testing.assert_close(rest, logits(model, rows)[:, 2:])


def test_beams_and_samples_belong_to_their_row():
    model = adapted()
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        found = written(model, **options)
        alone = [written(model, ROWS[row : row + 1], **options) for row in range(4)]
        assert torch.equal(found, torch.cat(alone))
    assert written(model, do_sample=True, num_return_sequences=3).shape == (12, 11)


def test_rows_with_adapters_of_their_own_find_their_own_invocation():
    names = ["default", "other", "plain", "__base__"]
    rows = torch.tensor([[1, 7, 8, 3], [3, 7, 8, 2], [1, 2, 3, 4], [7, 8, 3, 4]])
    ours, reference = get_peft_model(llama(), LoraConfig(**ALORA)), theirs()
    for name, tokens in (("other", [3]), ("plain", None)):
        ours.add_adapter(name, LoraConfig(**ALORA | {"alora_invocation_tokens": tokens}))
        reference.add_adapter(name, peft.LoraConfig(**ALORA | {"alora_invocation_tokens": tokens}))
    shake(ours)
    reference.load_state_dict(ours.state_dict())
    ours.eval(), reference.eval()
    torch.testing.assert_close(
        logits(ours, rows, adapter_names=names), logits(reference, rows, adapter_names=names)
    )
    mixed = written(ours, rows, adapter_names=names)
    assert torch.equal(mixed, written(reference, rows, adapter_names=names))
    for row, name in enumerate(names[:3]):
        ours.set_adapter(name)
        assert torch.equal(mixed[row], written(ours, rows[row : row + 1])[0])


def test_two_adapters_at_once_are_called_each_by_its_own_tokens():
    model = adapted()
    model.add_adapter("other", LoraConfig(**ALORA | {"alora_invocation_tokens": [3]}))
    shake(model)
    model.base_model.set_adapter(["default", "other"])
    rows = torch.tensor([[1, 2, 3, 7, 8]])
    both = logits(model, rows)
    model.set_adapter("other")
    torch.testing.assert_close(both[:, :3], logits(model, rows)[:, :3])
    assert not torch.allclose(both[:, 3:], logits(model, rows)[:, 3:])


def test_offsets_can_be_given():
    model = adapted()
    torch.testing.assert_close(logits(model, alora_offsets=[None, 5, 3, 2]), logits(model))
    with model.disable_adapter():
        bare = logits(model, alora_offsets=[5] * 4)
    torch.testing.assert_close(logits(model, alora_offsets=[None] * 4), bare)
    with pytest.raises(AdapterError, match=r"given \[4, 5, 16\] for 2 rows"):
        logits(model, alora_offsets=[1, 2])


def test_without_tokens_it_is_the_base_and_says_so():
    model = adapted()
    embedded = model.get_input_embeddings()(ROWS)
    with pytest.warns(UserWarning, match="aLoRA looks for its invocation tokens in input_ids"):
        found = model(inputs_embeds=embedded).logits
    torch.testing.assert_close(found, logits(llama().eval()))


def test_no_hook_stays_behind():
    model = adapted()
    logits(model)
    written(model)
    with pytest.raises(AdapterError):
        logits(model, alora_offsets=[1, 2])
    assert not any(module._forward_pre_hooks for module in model.modules())


def gradients(model: PeftModel, *batches: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(model(input_ids=rows, labels=rows).loss for rows in batches).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_give_the_same_gradients_whatever_came_between(use_reentrant: bool):
    model = adapted().train()
    batches = (ROWS, ROWS.flip(0), ROWS[:2, 1:])
    expected = gradients(model, *batches)
    base = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    base.enable_input_require_grads()
    torch.testing.assert_close(gradients(model, *batches), expected)
    assert any(gradient.any() for gradient in expected.values())


def test_rows_that_do_not_call_it_train_nothing_but_have_gradients():
    model = adapted().train()
    found = gradients(model, ROWS[:1])
    assert found
    assert not any(gradient.any() for gradient in found.values())


def test_a_copy_of_the_model_is_called_too():
    model = adapted()
    torch.testing.assert_close(logits(copy.deepcopy(model)), logits(model))


def test_it_never_merges_but_comes_off():
    model = adapted()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            AdapterError, match=r"'default' acts only from its alora_invocation_tokens on: it can"
        ):
            merge()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with pytest.raises(AdapterError, match="cannot be merged"):
        layer.merge()
    torch.testing.assert_close(logits(model.unload()), logits(llama().eval()))


def test_gpt2_s_linear_layers_take_it():
    base = gpt2()
    model = adapted(copy.deepcopy(base), target_modules=["c_attn"], fan_in_fan_out=True)
    rows = torch.tensor([[1, 2, 7, 8, 3]])
    found, bare = logits(model, rows), logits(base.eval(), rows)
    torch.testing.assert_close(found[:, :2], bare[:, :2])
    assert not torch.allclose(found[:, 2:], bare[:, 2:])


def test_what_does_not_go_together_is_refused():
    for fields, message in (
        ({"use_dora": True}, "use_dora: does not go together with alora_invocation_tokens"),
        ({"target_parameters": ["weight"]}, "target_parameters: does not go together"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "is for models with the task_type CAUSAL_LM only"),
        ({"alora_invocation_tokens": []}, "must be a list of token ids"),
        ({"alora_invocation_tokens": "<x>"}, "must be a list of token ids, not '<x>'"),
        ({"alora_invocation_tokens": [3, -1]}, "token ids from 0 up, not -1"),
    ):
        with pytest.raises(AdapterConfigError, match=message):
            LoraConfig(**ALORA | fields)
    with pytest.raises(AdapterError, match="needs the task_type CAUSAL_LM"):
        adapted(task_type=None)
    with pytest.raises(
        AdapterError, match=r"is a Embedding; alora_invocation_tokens takes nn\.Linear and Conv1D"
    ):
        adapted(target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match="is a Conv1d; alora_invocation_tokens takes"):
        adapted(Net(), target_modules=["conv1"])


def test_adapters_called_by_other_tokens_cannot_be_combined_or_swapped(tmp_path: Path):
    from peftcli.peft.hotswap import hotswap_adapter

    model = adapted()
    model.add_adapter("other", LoraConfig(**ALORA | {"alora_invocation_tokens": [3]}))
    with pytest.raises(AdapterError, match="are called by different alora_invocation_tokens"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum", combination_type="linear")
    model.add_adapter("same", LoraConfig(**ALORA))
    model.add_weighted_adapter(["default", "same"], [1.0, 1.0], "sum", combination_type="cat")
    assert model.peft_config["sum"].alora_invocation_tokens == CALL
    adapted(alora_invocation_tokens=[5]).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"alora_invocation_tokens is \[5\] in the new adapter"):
        hotswap_adapter(model, tmp_path, "default")


def test_rows_that_do_not_call_it_are_counted_and_refused_where_none_does():
    assert uncalled([[1, 7, 8], [7, 8, 2]], CALL) == ""
    assert uncalled([[1, 7, 8], [7, 9, 8], [7]], CALL).startswith("2 of 3 rows do not call the adapter")
    with pytest.raises(DataError, match=r"no training row has the tokens \[7, 8\]"):
        uncalled([[1, 8, 7]], CALL)
