"""What is FourierFT's own: which entries of the spectrum are trained."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from peftcli.errors import AdapterError
from peftcli.methods.fourierft.config import FourierFTConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Net, shake


def adapted(**values: Any) -> PeftModel:
    return get_peft_model(Net(), FourierFTConfig(**{"n_frequency": 9, "target_modules": ["mid"], **values}))


def entries(model: Any) -> torch.Tensor:
    return model.get_base_model().mid.indices["default"]


@pytest.mark.parametrize("seed", [777, 0])
def test_the_entries_are_peft_s(seed: int):
    config = peft.FourierFTConfig(n_frequency=9, target_modules=["mid"], random_loc_seed=seed)
    theirs = peft.get_peft_model(Net(), config)
    assert torch.equal(entries(adapted(random_loc_seed=seed)), entries(theirs))


def test_layers_of_one_shape_do_not_share_the_memory_of_their_entries():
    one, other = entries(adapted()), entries(adapted())
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()


def test_the_update_has_the_spectrum_that_is_trained():
    model = adapted(scaling=1.0).double()
    shake(model)
    layer = model.get_base_model().mid
    spectrum = torch.zeros(10, 16, dtype=torch.float64)
    spectrum[tuple(entries(model))] = layer.fourierft_spectrum["default"].detach()
    # Only the real part is added: every entry shares its number with the one that mirrors it.
    mirrored = spectrum.flip(0, 1).roll((1, 1), (0, 1))
    found = torch.fft.fft2(layer.get_delta_weight("default").detach())
    torch.testing.assert_close(found, ((spectrum + mirrored) / 2).to(found))


def test_more_entries_than_a_layer_has_are_refused():
    with pytest.raises(AdapterError, match=r"mid has 16 × 10 entries, which n_frequency 161 is more than"):
        adapted(n_frequency=161)
    assert adapted(n_frequency=161, n_frequency_pattern={"mid": 160}).get_nb_trainable_parameters()[0] == 160


def test_a_pattern_that_fits_no_layer_is_refused():
    with pytest.raises(AdapterError, match=r"n_frequency_pattern: 'mit' matches no adapted module; .*mid"):
        adapted(n_frequency_pattern={"mit": 3})
