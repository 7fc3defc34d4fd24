"""Batches of which each row has its own adapter, or none."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from peftcli.errors import AdapterError
from peftcli.methods.ia3.config import IA3Config
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, bert, gpt2, shake

TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]])
NAMES = ["default", "__base__", "other", "default"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=19, **SIZES, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return LlamaForCausalLM(config)


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=19, decoder_start_token_id=0, **sizes))
    model.generation_config.eos_token_id = None
    return model


def adapted(base: nn.Module, other: dict[str, Any] | None = None, **fields: Any) -> PeftModel:
    model = get_peft_model(base, LoraConfig(**fields))
    model.add_adapter("other", LoraConfig(**(fields if other is None else other)))
    shake(model)
    return model.eval()


def one_by_one(model: PeftModel, run: Any, rows: Any) -> list[Any]:
    """Each row alone, with its adapter set."""
    results = []
    for row, name in zip(rows, NAMES, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                results.append(run(row[None]))
        else:
            model.set_adapter(name)
            results.append(run(row[None]))
    return results


CASES = {
    "linear": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "dora": (llama, {"target_modules": ["q_proj", "v_proj"], "use_dora": True}),
    "heads": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "conv1d of gpt2": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_gives_what_each_row_alone_gives(case: str):
    make, fields = CASES[case]
    model = adapted(make(), **fields)
    mixed = model(input_ids=TOKENS, adapter_names=NAMES).logits
    alone = one_by_one(model, lambda row: model(input_ids=row).logits, TOKENS)
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_convolutions_and_classifiers_mix_too():
    tokens = torch.arange(32).reshape(4, 8) % 11
    torch.manual_seed(0)
    model = adapted(Net(), target_modules=["emb", "conv1", "conv2", "mid"], modules_to_save=["head"])
    mixed = model(tokens, adapter_names=NAMES)
    torch.testing.assert_close(mixed, torch.cat(one_by_one(model, model, tokens)), rtol=1e-4, atol=1e-5)
    labels = adapted(bert(), task_type="SEQ_CLS")
    mixed = labels(input_ids=TOKENS, adapter_names=NAMES).logits
    alone = one_by_one(labels, lambda row: labels(input_ids=row).logits, TOKENS)
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_adapters_on_other_layers_mix_as_in_peft():
    first, second = {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["q_proj", "k_proj"], "r": 3}
    ours = adapted(llama(), second, **first)
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(**first))
    theirs.add_adapter("other", peft.LoraConfig(**second))
    shake(theirs)
    theirs.load_state_dict(ours.state_dict())
    mixed = ours(input_ids=TOKENS, adapter_names=NAMES).logits
    torch.testing.assert_close(mixed, theirs.eval()(input_ids=TOKENS, adapter_names=NAMES).logits)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str
)
@pytest.mark.parametrize("make", [llama, t5])
def test_generating_mixes_and_beams_belong_to_their_row(make: Any, options: dict[str, Any]):
    targets = ["q_proj", "v_proj"] if make is llama else ["q", "v"]
    model = adapted(make(), target_modules=targets, r=4)

    def generate(rows: torch.Tensor, **more: Any) -> torch.Tensor:
        return model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=5,
            do_sample=False,
            **options,
            **more,
        )

    mixed = generate(TOKENS, adapter_names=NAMES)
    assert torch.equal(mixed, torch.cat(one_by_one(model, generate, TOKENS)))


def test_several_samples_of_a_row_have_its_adapter():
    model = adapted(llama(), target_modules=["q_proj"])
    made = model.generate(
        input_ids=TOKENS,
        attention_mask=torch.ones_like(TOKENS),
        adapter_names=NAMES,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=2,
    )
    assert made.shape == (12, 5)


def test_no_hook_stays_behind_even_after_an_error():
    model = adapted(llama(), target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="3 names for 4 rows"):
        model(input_ids=TOKENS, adapter_names=NAMES[:3])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_off_is_off_for_every_row():
    model = adapted(llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with model.disable_adapter():
        assert torch.equal(
            model(input_ids=TOKENS, adapter_names=NAMES).logits, llama().eval()(input_ids=TOKENS).logits
        )


def test_what_cannot_be_mixed_is_refused():
    model = adapted(llama(), target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="no adapter 'defalt'; did you mean 'default'"):
        model(input_ids=TOKENS, adapter_names=["defalt"] * 4)
    with pytest.raises(AdapterError, match="only for inference"):
        model.train()(input_ids=TOKENS, adapter_names=NAMES)
    model.eval().merge_adapter()
    with pytest.raises(AdapterError, match="call unmerge_adapter before"):
        model(input_ids=TOKENS, adapter_names=NAMES)
    ia3 = get_peft_model(llama(), IA3Config(target_modules=["q_proj"], feedforward_modules=[])).eval()
    with pytest.raises(AdapterError, match="mixes no batches"):
        ia3(input_ids=TOKENS, adapter_names=["default"] * 4)
