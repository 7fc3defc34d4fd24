"""What transformers.Trainer finds out about a model."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from transformers import BertForQuestionAnswering
from transformers.utils.generic import find_labels

from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from tests.methods.cases import bert, gpt2, llama, net, t5


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("CAUSAL_LM", ["labels"]),
        ("SEQ_CLS", ["labels"]),
        ("QUESTION_ANS", ["start_positions", "end_positions"]),
        (None, ["labels"]),
    ],
)
def test_the_labels_are_those_of_the_task(task: str | None, labels: list[str]):
    base = bert(BertForQuestionAnswering) if task == "QUESTION_ANS" else bert()
    fields: dict[str, Any] = {"task_type": task, "target_modules": ["query"]}
    model = get_peft_model(base, LoraConfig(**fields))
    assert set(labels) <= set(find_labels(type(model)))


@pytest.mark.parametrize("make", [llama, gpt2, t5, bert, net])
def test_forward_has_the_base_s_signature_even_in_a_copy(make: Any):
    base = make()
    targets = {"target_modules": ["mid"]} if make is net else {}
    model = get_peft_model(base, LoraConfig(**targets))
    assert inspect.signature(model.forward) == inspect.signature(base.forward)
    copied = copy.deepcopy(model)
    assert copied.forward.__self__ is copied


def test_a_state_with_tied_weights_can_be_written():
    model = get_peft_model(t5(), LoraConfig())
    live = dict(model.named_parameters(remove_duplicate=False))
    state = load(save(model.state_dict()))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], live[key]) for key in state if key in live)
    assert model.load_state_dict(state).missing_keys == []
