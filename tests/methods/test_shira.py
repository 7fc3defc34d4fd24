"""What is SHiRA's own: the places of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.shira.config import ShiraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, shake


def adapted(**values: Any) -> PeftModel:
    return get_peft_model(Net(), ShiraConfig(**{"r": 2, "target_modules": ["mid"], **values}))


def places(model: Any) -> torch.Tensor:
    return model.get_base_model().mid.shira_indices["default"]


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_the_places_are_peft_s(seed: int | None):
    config = peft.ShiraConfig(r=2, target_modules=["mid"], random_seed=seed)
    theirs = peft.get_peft_model(Net(), config)
    assert torch.equal(places(adapted(random_seed=seed)), places(theirs))


def test_another_seed_gives_other_places_and_no_place_twice():
    one, other = (places(adapted(random_seed=seed)) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert len(set(zip(*one.tolist(), strict=True))) == one.shape[1] == 2 * (16 + 10)


def test_layers_of_one_shape_do_not_share_the_memory_of_their_places():
    one, other = places(adapted()), places(adapted())
    assert one.data_ptr() != other.data_ptr()


def test_only_the_values_at_the_places_change_when_it_is_merged():
    model = adapted()
    shake(model)
    layer = model.get_base_model().mid
    before = layer.weight.detach().clone()
    model.merge_adapter()
    changed = (layer.weight != before).nonzero().T
    assert torch.equal(changed.int(), places(model))


def test_places_that_were_saved_as_numbers_with_a_point_are_read_as_places(tmp_path: Path):
    model = adapted()
    shake(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    # So PEFT saves them on Windows.
    save_file({key: tensor.float() for key, tensor in tensors.items()}, path)
    loaded = PeftModel.from_pretrained(Net(), tmp_path)
    assert places(loaded).dtype == torch.int32
    assert torch.equal(places(loaded), places(model))


def test_places_between_places_are_refused(tmp_path: Path):
    model = adapted()
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.float() + 0.5 for key, tensor in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="shira_indices has numbers of another kind"):
        PeftModel.from_pretrained(Net(), tmp_path)


def test_more_values_than_a_layer_has_are_refused():
    with pytest.raises(AdapterError, match=r"mid is \(10, 16\), which r 7 is more than; it can be 6 at most"):
        adapted(r=7)


def test_a_mask_of_another_kind_is_refused_but_for_a_trained_adapter():
    with pytest.raises(AdapterConfigError, match="mask_type: 'mine' is no way to choose places"):
        ShiraConfig(mask_type="mine")
    assert ShiraConfig(mask_type="mine", inference_mode=True).mask_type == "mine"


def test_hooks_on_the_base_layer_are_called():
    layer = adapted().get_base_model().mid
    called: list[str] = []
    layer.base_layer.register_forward_hook(lambda *_: called.append("forward"))
    layer(torch.randn(3, 16))
    assert called == ["forward"]


def test_on_a_half_precision_base_merging_changes_no_output_at_all():
    model = get_peft_model(Net().to(torch.bfloat16), ShiraConfig(r=2, target_modules=["mid"]))
    shake(model)
    tokens = torch.arange(16).reshape(2, 8) % 11
    unmerged = model(tokens)
    model.merge_adapter()
    assert torch.equal(model(tokens), unmerged)
