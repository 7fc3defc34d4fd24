"""What a quantized base needs before training: as PEFT does it."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.peft.quantized import prepare_model_for_kbit_training
from tests.methods.cases import llama


def told(model: Any) -> dict[str, Any]:
    return {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()} | {
        "checkpointing": model.is_activation_checkpointing,
        "hooks": len(model.get_input_embeddings()._forward_hooks),
    }


# PEFT still asks Transformers by the older name.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_reentrant": False}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_is_prepared_as_peft_prepares_it(quantized: bool, options: Any, checkpointing: bool):
    models = [llama().to(torch.bfloat16), llama().to(torch.bfloat16)]
    for model, prepare in zip(
        models, (prepare_model_for_kbit_training, peft.prepare_model_for_kbit_training), strict=True
    ):
        model.is_loaded_in_4bit = quantized  # what Transformers sets
        prepare(model, checkpointing, options)
    assert told(models[0]) == told(models[1])


def test_a_prepared_model_trains_through_its_checkpoints():
    model = llama().to(torch.bfloat16)
    model.is_loaded_in_4bit = True
    adapted = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(target_modules=["q_proj"]))
    adapted.train()(torch.tensor([[1, 2]])).logits.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
