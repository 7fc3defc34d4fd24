"""DoRA's norms are kept where that was asked for, and only as long as they are right."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from peft.helpers import DoraCaching as TheirCaching

from peftcli.methods.lora.caching import DoraCaching
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.variants import Dora
from peftcli.peft.model import get_peft_model
from tests.methods.cases import Net, shake

TOKENS = torch.arange(16).reshape(2, 8) % 11
FIELDS: dict[str, Any] = {"r": 2, "target_modules": ["mid", "conv1", "emb"], "use_dora": True}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Grows with every norm that is made."""
    made: list[str] = []
    measure = Dora._measured

    def counted(self: Dora, layer: Any, name: str) -> torch.Tensor:
        made.append(name)
        return measure(self, layer, name)

    monkeypatch.setattr(Dora, "_measured", counted)
    yield made
    DoraCaching()(enabled=False)


def models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    base = Net()
    ours = get_peft_model(copy.deepcopy(base), LoraConfig(**FIELDS))
    theirs = peft.get_peft_model(base, peft.LoraConfig(**FIELDS))
    shake(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def test_with_caching_each_norm_is_made_once_and_outputs_are_peft_s(measured: list[str]):
    ours, theirs = models()
    plain = ours(TOKENS)
    measured.clear()
    with DoraCaching(), TheirCaching():
        for _ in range(3):
            assert torch.equal(ours(TOKENS), plain)
            torch.testing.assert_close(ours(TOKENS), theirs(TOKENS))
    assert len(measured) == 3
    ours(TOKENS)
    assert len(measured) == 6


def test_a_change_is_noticed_and_training_keeps_nothing(measured: list[str]):
    ours, _ = models()
    with DoraCaching():
        before = ours(TOKENS)
        with torch.no_grad():
            ours.get_base_model().mid.lora_B["default"].weight.add_(0.5)
        changed = ours(TOKENS)
        assert not torch.equal(changed, before)
        ours.get_base_model().mid.scale_layer(2)
        assert not torch.equal(ours(TOKENS), changed)
        measured.clear()
        for _ in range(2):
            ours.train()(TOKENS)
        assert len(measured) == 6
    ours.eval()
    measured.clear()
    DoraCaching()(enabled=True)
    for _ in range(2):
        ours(TOKENS)
    assert len(measured) == 3
    with DoraCaching(enabled=False):
        ours(TOKENS)
    assert len(measured) == 6
    DoraCaching()(enabled=False)
    ours(TOKENS)
    assert len(measured) == 9
