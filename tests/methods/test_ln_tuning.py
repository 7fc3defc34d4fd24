"""What is LN tuning's own: copies in full precision on a half-precision base, and one adapter at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.errors import AdapterError
from peftcli.methods.ln_tuning.config import LNTuningConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, bert, llama, shake


def adapted() -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(llama().to(torch.bfloat16), LNTuningConfig())
    shake(model)
    return model.eval()


def test_on_a_half_precision_base_merging_changes_no_output_at_all():
    model = adapted()
    tokens = torch.arange(14).reshape(2, 7)
    layer: Any = model.get_base_model().model.norm
    assert layer.ln_tuning_layers["default"].weight.dtype == torch.float32
    unmerged = model(input_ids=tokens).logits
    model.merge_adapter()
    assert layer.get_base_layer().weight.dtype == torch.bfloat16
    assert torch.equal(model(input_ids=tokens).logits, unmerged)


def test_a_copy_made_while_another_adapter_is_merged_is_of_the_base():
    model = adapted()
    norm: Any = model.get_base_model().model.norm
    base = norm.get_base_layer().weight.detach().clone()
    model.merge_adapter()
    model.add_adapter("second", LNTuningConfig())
    torch.testing.assert_close(norm.ln_tuning_layers["second"].weight, base.float(), rtol=0, atol=0)


def test_two_adapters_cannot_be_used_together():
    model = adapted()
    model.add_adapter("second", LNTuningConfig())
    with pytest.raises(AdapterError, match="default, second cannot be used together"):
        model.merge_adapter(["default", "second"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(AdapterError, match="default, second cannot be used together"):
        model(input_ids=torch.arange(14).reshape(2, 7))


def test_without_names_the_norms_of_any_architecture_are_adapted():
    model = get_peft_model(bert(), LNTuningConfig())
    assert model.peft_config["default"].target_modules == ["LayerNorm"]
    assert len(model.base_model.targeted_module_names) == 5


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["norm", "layers"], "layers is a ModuleList, which is not called"),
        (["act"], "act is a ReLU without weights to train"),
        (["batch"], "batch keeps statistics beside its weights"),
        (["block", "norm"], "block.norm is inside block, which is trained whole"),
    ],
)
def test_what_cannot_be_copied_is_refused(targets: list[str], message: str):
    net = Net()
    net.act, net.batch = nn.ReLU(), nn.BatchNorm1d(3)
    net.layers = nn.ModuleList([nn.Linear(2, 2)])
    net.block = nn.Module()
    net.block.norm = nn.LayerNorm(3)
    with pytest.raises(AdapterError, match=message):
        get_peft_model(net, LNTuningConfig(target_modules=targets))
