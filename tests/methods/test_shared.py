"""What is particular to methods whose layers share something: VeRA's and RandLoRA's projections, VB-LoRA's bank."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.randlora.config import RandLoraConfig
from peftcli.methods.randlora.layer import ScaledBases
from peftcli.methods.vblora.config import VBLoRAConfig
from peftcli.methods.vera.config import VeraConfig
from peftcli.peft.model import PeftModel, get_peft_model
from tests.methods.cases import Case, Net, build, inputs, llama, outputs, shake

WEIGHTS = "adapter_model.safetensors"
QV = ["q_proj", "v_proj"]
THEIRS = {VeraConfig: peft.VeraConfig, RandLoraConfig: peft.RandLoraConfig, VBLoRAConfig: peft.VBLoRAConfig}
CONFIGS: list[Any] = [
    VeraConfig(r=3, target_modules=QV),
    RandLoraConfig(r=3, target_modules=QV),
    RandLoraConfig(r=3, target_modules=QV, sparse=True),
    RandLoraConfig(r=3, target_modules=QV, very_sparse=True, projection_prng_key=4),
    VBLoRAConfig(num_vectors=7, vector_length=4, target_modules=QV),
]
over_projections = pytest.mark.parametrize("config", CONFIGS[:4], ids=repr)


def base(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return build(Case("", "", llama), dtype)


def ours(config: Any, dtype: torch.dtype = torch.float32) -> PeftModel:
    return get_peft_model(base(dtype), config)


def theirs(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {name: value for name, value in values.items() if name not in ("peft_type", "peft_version")}
    return peft.get_peft_model(base(dtype), THEIRS[type(config)](**values))


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_state_dicts_have_peft_s_names_in_which_every_layer_has_what_is_shared(config: Any):
    one, other = ours(config).state_dict(), theirs(config).state_dict()
    assert {key: value.shape for key, value in one.items()} == {
        key: value.shape for key, value in other.items()
    }


@over_projections
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_projections_are_the_very_numbers_that_peft_draws(config: Any, dtype: torch.dtype):
    one, other = ours(config, dtype).state_dict(), theirs(config, dtype).state_dict()
    names = [f"base_model.{name}.default" for name in ours(config).tuner.method_of("default").shared]
    assert len(names) == 2
    assert all(torch.equal(one[name], other[name]) for name in names)


@over_projections
def test_an_adapter_beside_another_is_the_same_when_it_is_loaded_alone(config: Any, tmp_path: Path):
    model = ours(dataclasses.replace(config, target_modules="all-linear"))
    config = dataclasses.replace(config, save_projection=False, projection_prng_key=9)
    model.add_adapter("second", config)
    model.set_adapter("second")
    shake(model)
    arguments = inputs(model.get_base_model())
    second = outputs(model, arguments)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "second")
    torch.testing.assert_close(outputs(loaded, arguments), second, rtol=0, atol=0)
    both = PeftModel.from_pretrained(base(), tmp_path)
    both.load_adapter(tmp_path / "second", "second")
    both.set_adapter("second")
    torch.testing.assert_close(outputs(both, arguments), second, rtol=0, atol=0)


@over_projections
def test_projections_are_saved_once_or_not_at_all(config: Any, tmp_path: Path):
    for save in (True, False):
        model = ours(dataclasses.replace(config, save_projection=save))
        model.save_pretrained(tmp_path)
        shared = {f"base_model.{name}" for name in model.tuner.method_of("default").shared}
        keys = load_file(tmp_path / WEIGHTS).keys()
        assert shared & keys == (shared if save else set())
        assert not [key for key in keys - shared if key.endswith(("_A", "_B"))]
        assert any("_A." in key for key in model.state_dict()) == save


@over_projections
def test_a_file_without_the_projections_that_its_config_promises_is_refused(config: Any, tmp_path: Path):
    ours(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(("_A", "_B"))}
    save_file(kept, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=r"has no base_model\.\w+_A \(and 1 more\)"):
        PeftModel.from_pretrained(base(), tmp_path)


@over_projections
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_projections_count_and_not_those_of_the_key(
    config: Any, low_cpu_mem_usage: bool, tmp_path: Path
):
    model = ours(config)
    shake(model)
    for buffer in model.tuner.shared_tensors("default").values():
        buffer.mul_(1.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    arguments = inputs(model.get_base_model())
    torch.testing.assert_close(outputs(loaded, arguments), outputs(model, arguments), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # those of the copies; the bases are there
def test_randlora_s_saved_bases_go_both_ways_though_peft_saves_them_once_a_layer(tmp_path: Path):
    config, arguments = CONFIGS[1], inputs(base())
    one, other = ours(config), theirs(config)
    for side, model in (("ours", one), ("theirs", other)):
        shake(model)
        model.save_pretrained(tmp_path / side)
    theirs_of_ours = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    ours_of_theirs = PeftModel.from_pretrained(base(), tmp_path / "theirs")
    torch.testing.assert_close(outputs(theirs_of_ours, arguments), outputs(one, arguments), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        outputs(ours_of_theirs, arguments), outputs(other, arguments), rtol=0, atol=1e-5
    )
    sizes = [(tmp_path / side / WEIGHTS).stat().st_size for side in ("ours", "theirs")]
    assert sizes[0] < 0.7 * sizes[1]


def test_bases_too_sparse_for_a_layer_are_refused_and_leave_the_model_as_it_was():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 4)})
    config = RandLoraConfig(r=1, target_modules=["one"], very_sparse=True, projection_prng_key=2)
    with pytest.raises(AdapterError, match="leave nothing of sparse bases"):
        get_peft_model(model, config)
    assert type(model["one"]) is torch.nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_scaled_bases_gradients_are_autograd_s():
    generator = torch.Generator().manual_seed(1)
    basis, lambdas, gammas = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 1, 5), (3, 2), (2, 5))
    )
    product = ScaledBases.apply(basis.detach(), lambdas, gammas)
    torch.testing.assert_close(product, lambdas[:, :, None] * basis * gammas)
    assert torch.autograd.gradcheck(
        lambda *trained: ScaledBases.apply(basis.detach(), *trained), (lambdas, gammas)
    )


def test_layers_of_another_method_lie_around_those_that_share():
    model = get_peft_model(base(), CONFIGS[0], mixed=True)
    model.add_adapter("bank", CONFIGS[4])
    model.set_adapter(["default", "bank"])
    shake(model)
    arguments = inputs(model.get_base_model())
    both = outputs(model, arguments)
    model.set_adapter("default")
    assert not torch.equal(outputs(model, arguments), both)
    model.set_adapter(["default", "bank"])
    plain = model.merge_and_unload()
    torch.testing.assert_close(outputs(plain, arguments), both)


# VB-LoRA


def small(**values: Any) -> VBLoRAConfig:
    return dataclasses.replace(CONFIGS[4], save_only_topk_weights=True, topk=3, **values)


def trained(model: Any) -> Any:
    shake(model)
    with torch.no_grad():  # spread wide, so that shares of nearly nothing occur
        for name, parameter in model.named_parameters():
            if "logits" in name:
                parameter.mul_(20)
    return model


@pytest.mark.parametrize("num_vectors", [7, 300])
def test_mixtures_alone_go_both_ways(num_vectors: int, tmp_path: Path):
    config, arguments = small(num_vectors=num_vectors), inputs(base())
    one, other = trained(ours(config)), trained(theirs(config))
    for side, model in (("ours", one), ("theirs", other)):
        model.save_pretrained(tmp_path / side)
    files = [load_file(tmp_path / side / WEIGHTS) for side in ("ours", "theirs")]
    said = [{key: (value.shape, value.dtype) for key, value in sorted(tensors.items())} for tensors in files]
    assert said[0] == said[1]
    theirs_of_ours = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    ours_of_theirs = PeftModel.from_pretrained(base(), tmp_path / "theirs")
    torch.testing.assert_close(outputs(theirs_of_ours, arguments), outputs(one, arguments), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        outputs(ours_of_theirs, arguments), outputs(other, arguments), rtol=0, atol=1e-5
    )


def test_a_share_of_nothing_is_read_as_such(tmp_path: Path):
    model = ours(small())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logits" in name:
                parameter.copy_(torch.arange(7) * 300.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    arguments = inputs(model.get_base_model())
    torch.testing.assert_close(outputs(loaded, arguments), outputs(model, arguments), rtol=0, atol=1e-6)


def test_training_that_is_resumed_has_the_logits_that_its_file_leaves_out(tmp_path: Path):
    model = trained(ours(small()))
    model.save_pretrained(tmp_path)
    state = model.tuner.training_state()
    resumed = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    resumed.tuner.load_training_state(state)
    one, other = model.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ours(CONFIGS[4]).tuner.training_state() == {"default": {}}


@pytest.mark.parametrize("config", [CONFIGS[4], small()], ids=["logits", "mixtures"])
def test_the_savable_parameters_are_counted_as_peft_counts_them(
    config: VBLoRAConfig, capsys: pytest.CaptureFixture[str]
):
    config = dataclasses.replace(config, modules_to_save=["lm_head"])
    one, other = ours(config), theirs(config)
    assert one.get_nb_savable_parameters() == other.get_nb_savable_parameters()
    one.print_savable_parameters()
    said = capsys.readouterr().out
    other.print_savable_parameters()
    assert said == capsys.readouterr().out


def test_vectors_that_do_not_fit_a_layer_are_refused():
    with pytest.raises(
        AdapterError, match=r"mid has 16 inputs and 10 outputs, which vector_length 4 does not"
    ):
        get_peft_model(Net(), VBLoRAConfig(vector_length=4, target_modules=["mid"]))


def test_more_vectors_than_there_are_cannot_be_mixed():
    with pytest.raises(AdapterConfigError, match=r"topk: is 3, but the bank has num_vectors 2"):
        VBLoRAConfig(num_vectors=2, topk=3)


def test_what_peft_would_warn_of_is_read_in_silence(tmp_path: Path):
    config = dataclasses.replace(CONFIGS[0], save_projection=False)
    ours(config).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftModel.from_pretrained(base(), tmp_path)
