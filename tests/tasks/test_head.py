"""The loss stands in the place of a head where it says the same as the loss of its logits, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli import LoraConfig, get_peft_model
from peftcli.tasks.by_rows import logits
from peftcli.tasks.head import LossHead, place_for_loss
from peftcli.tasks.token_loss import summed_token_loss
from peftcli.tasks.unwrapped import unwrapped
from tests.tasks.test_by_rows import made
from tests.tasks.test_causal_lm import (
    LENGTHS,
    VOCABULARY,
    assert_same_gradients,
    gpt2,
    gradients,
    llama,
    opt,
    plain_loss,
    random_rows,
    task,
)

IDS = torch.arange(18).view(2, 9)
KEPT = torch.tensor([[1, 3, 4], [0, 2, 7]])


def adapted(model):
    return get_peft_model(model, LoraConfig(target_modules="all-linear")).eval()


def said(model, ids=IDS):
    return logits(model, unwrapped(model), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def place_in(model):
    return place_for_loss(model, said)


def of_logits(model):
    kept = said(model).take_along_dim(KEPT.unsqueeze(-1), dim=1)
    return summed_token_loss(kept.flatten(0, 1), KEPT.flatten(), label_smoothing=0.1)


def gemma2():
    """Its logits have a cap."""
    return made("Gemma2", head_dim=8)


def cohere():
    """Its logits are scaled."""
    return made("Cohere", logit_scale=0.25)


@pytest.mark.parametrize("make", [llama, gpt2, opt])
def test_the_loss_at_the_head_has_the_value_and_gradient_of_that_of_its_logits(make):
    model = adapted(make()).double()
    place = place_in(model)
    ours = place.loss(lambda: said(model), KEPT, KEPT, 0.1)
    found = gradients(model, ours)
    plain = of_logits(model)
    torch.testing.assert_close(ours, plain)
    assert_same_gradients(found, gradients(model, plain), 1e-10)


def test_training_takes_it_and_gives_the_head_back():
    model = adapted(llama()).double()
    head, rows, seen = model.get_output_embeddings(), random_rows(LENGTHS), []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, given: seen.append(given.shape) if isinstance(module, LossHead) else None
    )
    joining = task()
    try:
        with joining.readied(model):
            seen.clear()  # the trial's
            loss, _ = joining.loss(model, joining.collate(rows))
    finally:
        hook.remove()
    assert seen == [torch.Size([])]
    assert model.get_output_embeddings() is head
    torch.testing.assert_close(loss, plain_loss(model, rows), rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", [gemma2, cohere])
def test_a_model_that_does_something_with_its_logits_keeps_its_head(make):
    model = adapted(make())
    assert place_in(model) is None
    joining, rows = task(), random_rows(LENGTHS)
    with joining.readied(model):
        loss, _ = joining.loss(model, joining.collate(rows))
    torch.testing.assert_close(loss, plain_loss(model, rows), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"lm_head": [1]}},
    ],
)
def test_a_head_that_is_trained_stays(settings):
    model = get_peft_model(llama(), LoraConfig(**{"target_modules": ["q_proj"]} | settings))
    assert place_in(model) is None


def test_a_model_whose_own_weights_are_trained_keeps_its_head():
    model = llama()
    assert place_in(model) is None
    model.requires_grad_(False)
    assert place_in(model) is not None


def test_a_head_with_something_on_it_stays():
    model = adapted(llama())
    place = place_in(model)
    assert place.is_free()
    model.get_output_embeddings().register_forward_hook(lambda *_: None)
    assert not place.is_free()
    assert place_in(model) is None


def test_the_head_comes_back_after_an_error():
    model = adapted(llama())
    place, head = place_in(model), model.get_output_embeddings()
    with pytest.raises(IndexError):
        place.loss(lambda: said(model, torch.tensor([[VOCABULARY + 1]])), KEPT, KEPT)
    assert model.get_output_embeddings() is head
