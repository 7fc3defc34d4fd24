"""A model whose norms and gated layers keep less is the same model, and is put back."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from peftcli import LoraConfig, get_peft_model
from peftcli.train.lean import LeanGated, LeanNorm, lean_modules

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def adapted(name, config="Config", **sizes):
    torch.manual_seed(0)
    given = getattr(transformers, name + config)(**{**SIZES, **sizes})
    base = getattr(transformers, f"{name}ForCausalLM")(given)
    for module in base.modules():
        if "RMSNorm" in type(module).__name__:
            nn.init.normal_(module.weight, mean=1)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return model.train()


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def counted(model):
    kinds = [type(module) for module in model.modules()]
    return kinds.count(LeanNorm), kinds.count(LeanGated)


@pytest.mark.parametrize(
    ("name", "options", "lean"),
    [
        ("Llama", {}, (5, 2)),
        ("Qwen3", {"head_dim": 8}, (9, 2)),
        ("Mistral", {}, (5, 2)),
        # Its norms multiply by 1 + weight; its gated layers are like the others'.
        ("Gemma", {"head_dim": 8}, (0, 2)),
        # One matrix for both of the gate and what it gates.
        ("Phi3", {}, (5, 0)),
        ("GPTNeoX", {}, (0, 0)),
    ],
)
@pytest.mark.parametrize("anew", [False, True])
def test_gradients_are_the_same_and_the_model_is_put_back(name, options, lean, anew):
    model = adapted(name, **options)
    if anew:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    wanted = gradients(model, ids)
    modules, names = dict(model.named_modules()), list(model.state_dict())
    with lean_modules(model):
        assert counted(model) == lean
        assert list(model.state_dict()) == names
        found = gradients(model, ids)
    assert counted(model) == (0, 0)
    assert dict(model.named_modules()) == modules
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-6, msg=key)


def test_what_is_trained_itself_or_hooked_stays():
    model = adapted("Llama").get_base_model()
    model.model.norm.weight.requires_grad_(True)
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    with lean_modules(model):
        assert counted(model) == (4, 1)


class Scaled(nn.Module):
    """A gated layer that does more with its parts than others."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        self.down_proj, self.act_fn = nn.Linear(6, 4), nn.SiLU()

    def forward(self, x):
        return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_a_layer_of_the_same_parts_that_does_something_else_stays():
    model = nn.Sequential(Scaled())
    with lean_modules(model):
        assert counted(model) == (0, 0)


def test_evaluation_mode_set_in_between_stays():
    model = adapted("Llama")
    with lean_modules(model):
        model.eval()
    assert not any(module.training for module in model.modules())
