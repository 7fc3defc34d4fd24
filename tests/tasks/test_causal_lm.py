"""The causal task's loss is the plain one: over all logits, row by row, whatever is left out or packed on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    XLMConfig,
    XLMWithLMHeadModel,
)

from peftcli.data.example import Text
from peftcli.data.pack import PackedRows, pack
from peftcli.data.store import Picked, RowStore
from peftcli.data.tokens import IGNORED
from peftcli.errors import ModelError
from peftcli.tasks.causal_lm import CausalLM
from tests.conftest import byte_tokenizer, tiny_llama
from tests.data.writers import recipe_with

VOCABULARY = 259  # the tokenizer's


def task(**data):
    return CausalLM(recipe_with(**data), byte_tokenizer())


def random_rows(lengths, seed=0):
    draw = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = draw.integers(0, VOCABULARY, length).astype(np.int32)
        labels = np.where(draw.random(length) < 0.5, ids, IGNORED).astype(np.int32)
        labels[-1] = ids[-1]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def llama():
    return tiny_llama(VOCABULARY, eos_token_id=1, pad_token_id=0)


def gpt2():
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, **ids)).eval()


def opt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=VOCABULARY, word_embed_proj_dim=16, **sizes)).eval()


def without_logits_to_keep():
    """A model whose forward gives all logits, always."""
    torch.manual_seed(0)
    return XLMWithLMHeadModel(
        XLMConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=1, n_heads=2, causal=True)
    ).eval()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def plain_loss(model, rows):
    """Row by row, over all logits, as Transformers' own loss has it but summed."""
    total = 0.0
    for row in rows:
        ids = torch.as_tensor(row["input_ids"]).long().unsqueeze(0)
        logits = model(input_ids=ids).logits[0, :-1]
        targets = torch.as_tensor(row["labels"]).long()[1:]
        total = total + F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return total


def assert_same_gradients(one, other, atol):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("make", [llama, gpt2, opt, without_logits_to_keep])
def test_the_loss_and_its_gradient_are_the_plain_ones(make):
    model = make().double()
    rows = random_rows((9, 5, 12, 2))
    loss, count = task().loss(model, task().collate(rows))
    plain = plain_loss(model, rows)
    assert count.item() == sum((row["labels"][1:] != IGNORED).sum() for row in rows)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, plain), 1e-12)


def test_the_head_sees_trained_positions_alone():
    model = llama()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    rows = [{"input_ids": np.arange(20), "labels": np.array([IGNORED] * 17 + [17, 18, 19])} for _ in range(2)]
    task().loss(model, task().collate(rows))
    assert [tuple(shape) for shape in seen] == [(2, 3, 32)]


def test_the_loss_goes_through_an_adapter_s_wrapper():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    seen = []
    model.get_base_model().lm_head.register_forward_hook(lambda *call: seen.append(call[1][0].shape))
    batch = task().collate(random_rows((9, 5)))
    loss, _ = task().loss(model, batch)
    assert seen[0][:2] == batch["kept"].shape
    gradients = {name for name, value in model.named_parameters() if value.requires_grad}
    loss.backward()
    assert gradients
    assert all(model.get_parameter(name).grad is not None for name in gradients)


def test_accuracy_and_loss_come_from_one_forward():
    model = llama()
    rows = random_rows((9, 5, 12))
    calls = []
    model.register_forward_hook(lambda *call: calls.append(1))
    with torch.no_grad():
        metrics = task().metrics(model, task().collate(rows)).sums
        assert len(calls) == 1
        hits = 0
        for row in rows:
            best = (
                model(input_ids=torch.as_tensor(row["input_ids"]).long().unsqueeze(0))
                .logits[0, :-1]
                .argmax(-1)
            )
            hits += (best == torch.as_tensor(row["labels"])[1:]).sum().item()
        plain = plain_loss(model, rows)
    assert metrics["accuracy"][0].item() == hits
    torch.testing.assert_close(metrics["loss"][0], plain)
    assert metrics["accuracy"][1].item() == metrics["loss"][1].item()


def test_a_batch_is_padded_on_the_right():
    batch = task().collate(random_rows((3, 5)))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [256, 256]
    assert batch["labels"][0, 3:].tolist() == [IGNORED, IGNORED]
    assert "position_ids" not in batch


def packed_rows(rows, limit):
    store = RowStore()
    for row in rows:
        store.append(row)
    return PackedRows(Picked(store, store.lengths, np.arange(len(store))), limit)


LENGTHS = (9, 5, 12, 2, 7, 3, 1, 16)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_alone(make, attention):
    model = make().double()
    model.set_attn_implementation(attention)
    rows = random_rows(LENGTHS)
    packed = packed_rows(rows, 16)
    assert len(packed) < len(rows)
    batch = task().collate([packed[at] for at in range(len(packed))])
    assert "attention_mask" not in batch
    loss, count = task().loss(model, batch)
    plain = plain_loss(model, rows)
    assert count.item() == sum((row["labels"][1:] != IGNORED).sum() for row in rows)
    # Eager attention takes its softmax in float32, whatever the model's type.
    exact = 1e-12 if attention == "sdpa" else 1e-5
    torch.testing.assert_close(loss, plain, rtol=exact, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, plain), exact)


def test_packing_puts_every_row_once_into_sequences_of_at_most_the_limit():
    draw = np.random.default_rng(0)
    for _ in range(50):
        lengths = draw.integers(1, 33, draw.integers(1, 200)).tolist()
        bins = pack(lengths, 32)
        assert sorted(row for each in bins for row in each) == list(range(len(lengths)))
        assert all(sum(lengths[row] for row in each) <= 32 for each in bins)
        assert len(bins) <= 11 / 9 * -(-sum(lengths) // 32) + 1 or max(lengths) > 16
        assert bins == pack(lengths, 32)


def test_a_packed_row_never_predicts_the_next_one_s_first_token():
    rows = [
        {"input_ids": np.arange(3, dtype=np.int32), "labels": np.arange(3, dtype=np.int32)} for _ in range(2)
    ]
    row = packed_rows(rows, 6)[0]
    assert row["labels"].tolist() == [IGNORED, 1, 2, IGNORED, 1, 2]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2]


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))


def recurrent():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(vocab_size=VOCABULARY, **sizes))


@pytest.mark.parametrize(
    ("make", "says"),
    [(bloom, "takes no position_ids"), (opt, "see one another"), (recurrent, "see one another")],
)
def test_a_model_that_would_mix_packed_rows_is_refused(make, says):
    with pytest.raises(ModelError, match=says):
        task(packing=True, max_length=16).check_model(make())
    task().check_model(make())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_model_that_keeps_packed_rows_apart_is_taken_and_left_as_it_was(make):
    model = make().train()
    task(packing=True, max_length=16).check_model(model)
    assert model.training


def test_a_base_that_does_not_know_the_tokenizer_s_tokens_is_refused():
    made = task()
    made.encode([Text("ab")])
    small = tiny_llama(2, eos_token_id=1, pad_token_id=0)
    with pytest.raises(ModelError, match="the base knows 2: they do not belong together"):
        made.check_model(small)


def test_under_flash_attention_packed_rows_become_one_row_and_no_row_predicts_another():
    made = task(packing=True, max_length=16)
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.MonkeyPatch.context() as patch:
        # The probe would run the kernel itself, which only a GPU has.
        patch.setattr("peftcli.tasks.causal_lm.mixes_packed_rows", lambda *_: False)
        made.check_model(model)
    rows = [
        {name: np.asarray(values, dtype=np.int32) for name, values in row.items()}
        for row in (
            {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 2]},
            {"input_ids": [4, 5], "labels": [4, 5], "position_ids": [0, 1]},
        )
    ]
    batch = made.collate(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, IGNORED, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["targets"].tolist() == [[2, 3, 5]]
    assert "attention_mask" not in batch


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        CausalLM(recipe_with(), Slow())
