"""Rows joined into one batch without padding are trained as the same rows padded, or are not joined."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers

from peftcli import AdaptionPromptConfig, LoraConfig, PromptTuningConfig, get_peft_model
from peftcli.tasks.by_rows import NAME, attending_by_rows
from tests.data.writers import recipe_with
from tests.tasks.test_causal_lm import (
    LENGTHS,
    VOCABULARY,
    CausalLM,
    assert_same_gradients,
    bloom,
    byte_tokenizer,
    gpt2,
    gradients,
    llama,
    opt,
    packed_rows,
    plain_loss,
    random_rows,
    recurrent,
    task,
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def made(name, config="Config", **sizes):
    torch.manual_seed(0)
    config = getattr(transformers, name + config)(
        **{"vocab_size": VOCABULARY, "num_key_value_heads": 2, "pad_token_id": 0, **SIZES, **sizes}
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def qwen3():
    return made("Qwen3", head_dim=8)


def mistral():
    """Its window is shorter than most rows."""
    return made("Mistral", sliding_window=4)


def gemma3():
    """Layers with a window and layers without one."""
    return made(
        "Gemma3",
        "TextConfig",
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )


def mixtral():
    model = made("Mixtral", num_local_experts=4)
    model.set_experts_implementation("eager")  # the other one knows no float64
    return model


@pytest.mark.parametrize("make", [llama, gpt2, opt, qwen3, mistral, gemma3, mixtral])
@pytest.mark.parametrize("packing", [False, True])
def test_joined_rows_have_the_loss_and_the_gradient_of_rows_alone(make, packing):
    model = make().double()
    rows = random_rows(LENGTHS)
    given = rows
    if packing:
        packed = packed_rows(rows, 16)
        given = [packed[at] for at in range(len(packed))]
    joining = task()
    with joining.readied(model):
        batch = joining.collate(given)
        assert batch["input_ids"].shape == (1, sum(LENGTHS))
        loss, count = joining.loss(model, batch)
        found = gradients(model, loss)
    assert model.config._attn_implementation == "sdpa"
    plain = plain_loss(model, rows)
    assert count.item() == sum((row["labels"][1:] != -100).sum() for row in rows)
    # Its norms are computed in float32, whatever the model's type.
    exact = 1e-5 if make is gemma3 else 1e-10
    torch.testing.assert_close(loss, plain, rtol=exact, atol=0)
    assert_same_gradients(found, gradients(model, plain), exact)


def test_layers_that_are_computed_anew_attend_by_rows_again():
    rows = random_rows(LENGTHS)
    wanted = None
    for anew in (False, True):
        model = llama().double().train()
        if anew:
            model.activation_checkpointing_enable({"use_reentrant": False})
        joining = task()
        with joining.readied(model):
            loss, _ = joining.loss(model, joining.collate(rows))
            found = gradients(model, loss)
        wanted = wanted or found
    assert_same_gradients(found, wanted, 1e-12)


@pytest.mark.parametrize(
    "config", [LoraConfig(target_modules="all-linear"), AdaptionPromptConfig(adapter_len=3, adapter_layers=2)]
)
def test_an_adapter_sees_what_it_sees_in_padded_rows(config):
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(llama().double(), config).double()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3, generator=draw)
    rows, joining = random_rows(LENGTHS), task()
    padded, _ = joining.loss(model, joining.collate(rows))
    with joining.readied(model):
        batch = joining.collate(rows)
        assert "cu_seq_lens_q" in batch
        joined, _ = joining.loss(model, batch)
    torch.testing.assert_close(joined, padded, rtol=1e-10, atol=0)


def gemma2():
    """Its attention's products are capped."""
    return made("Gemma2", head_dim=8)


def gpt_oss():
    """Its attention has sinks."""
    return made("GptOss", head_dim=8, num_local_experts=4)


def mamba():
    return made("Mamba")


def eager_llama():
    model = llama()
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("make", [bloom, recurrent, gemma2, gpt_oss, mamba, eager_llama])
def test_a_model_that_cannot_attend_by_rows_has_padded_rows(make):
    model = make().eval()
    before = getattr(model.config, "_attn_implementation", None)
    with attending_by_rows(model) as able:
        assert not able
        assert getattr(model.config, "_attn_implementation", None) == before
    rows, joining = random_rows((3, 5)), task()
    with joining.readied(model):
        assert joining.collate(rows)["input_ids"].shape == (2, 5)


def test_prompts_stand_before_each_row_and_compiled_models_have_one_shape():
    rows = random_rows((3, 5))
    prompted = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    training = recipe_with().training.model_copy(update={"torch_compile": True})
    recipe = recipe_with().model_copy(update={"training": training})
    for joining, model in ((task(), prompted), (CausalLM(recipe, byte_tokenizer()), llama())):
        with joining.readied(model):
            assert joining.collate(rows)["input_ids"].shape == (2, 5)


def test_an_adapter_that_looks_for_its_tokens_in_each_row_has_rows_of_its_own():
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", alora_invocation_tokens=[1, 2])
    model, joining = get_peft_model(llama(), config), task()
    with joining.readied(model):
        assert joining.collate(random_rows((3, 5)))["input_ids"].shape == (2, 5)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_put_back_at_the_end_and_batches_are_padded_again(fails):
    model, joining = llama(), task()
    with pytest.raises(KeyError) if fails else nullcontext(), joining.readied(model):
        assert model.config._attn_implementation == NAME
        if fails:
            raise KeyError
    assert model.config._attn_implementation == "sdpa"
    assert joining.collate(random_rows((3, 5)))["input_ids"].shape == (2, 5)


def test_a_joined_batch_says_that_it_has_no_padding():
    joining, model = task(), llama()
    with joining.readied(model):
        batch = joining.collate(random_rows((3, 5)))
    assert batch["attention_mask"].tolist() == [[1] * 8]
    assert batch["cu_seq_lens_q"] == [0, 3, 8]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
