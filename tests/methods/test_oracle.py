"""Real PEFT and ours read one another's files, name everything alike, and give the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftcli.adapters.config import PeftConfig
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import load_peft_weights
from peftcli.registry import METHODS, resolve
from tests.methods.cases import CASES, Case, build, inputs, outputs, shake

pytestmark = [
    pytest.mark.filterwarnings("ignore:lora_dropout does not act on embeddings"),
    pytest.mark.filterwarnings("ignore:oft_block_size .* does not divide"),
    pytest.mark.filterwarnings("ignore:.* cannot start in pairs"),
    # PEFT's own remarks on what these cases ask of it.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not identify embedding layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not (save|load) (vera|basis)_A and:UserWarning"),
    pytest.mark.filterwarnings("ignore:The symmetric initialization can NOT be performed:UserWarning"),
]
every = pytest.mark.parametrize(
    "case", [case for case in CASES if case.oracle], ids=lambda case: f"{case.peft_type} {case.name}"
)
FLOAT = torch.float32


class BlockDiagonal:
    """What PEFT's CUDA kernel for BOFT gives; where it cannot be compiled, PEFT silently uses one factor of several."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*factor) for factor in blocks])]


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", BlockDiagonal)


def ours(case: Case) -> PeftModel:
    return get_peft_model(
        build(case, FLOAT), resolve(METHODS, case.peft_type, what="peft_type")(**case.config)
    )


def theirs(case: Case) -> Any:
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[case.peft_type](**case.config)
    return peft.get_peft_model(build(case, FLOAT), config)


def close(one: torch.Tensor, other: torch.Tensor, case: Case) -> None:
    # Fast PiSSA draws random numbers: what PEFT takes out of the base differs by a little from run to run.
    tolerance = 2e-3 if "niter" in str(case.config.get("init_lora_weights")) else 2e-6
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@every
def test_parameters_have_peft_s_names_shapes_and_gradients(case: Case):
    one = {name: (p.shape, p.dtype, p.requires_grad) for name, p in ours(case).named_parameters()}
    other = {name: (p.shape, p.dtype, p.requires_grad) for name, p in theirs(case).named_parameters()}
    assert one == other


@every
def test_the_printed_count_of_parameters_is_peft_s(case: Case, capsys: pytest.CaptureFixture[str]):
    ours(case).print_trainable_parameters()
    mine = capsys.readouterr().out
    theirs(case).print_trainable_parameters()
    assert mine == capsys.readouterr().out


@every
def test_peft_loads_our_files_and_gives_the_same(
    case: Case, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    model = ours(case)
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(case, FLOAT), tmp_path)
    assert not [str(warning.message) for warning in recwarn if "keys" in str(warning.message)]
    arguments = inputs(model.get_base_model())
    close(outputs(model, arguments), outputs(loaded, arguments), case)


@every
def test_ours_loads_peft_s_files_and_gives_the_same(case: Case, tmp_path: Path):
    model = theirs(case)
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(case, FLOAT), tmp_path)
    arguments = inputs(loaded.get_base_model())
    close(outputs(loaded, arguments), outputs(model, arguments), case)


@every
def test_both_write_the_same_keys_and_shapes(case: Case, tmp_path: Path):
    ours(case).save_pretrained(tmp_path / "ours")
    theirs(case).save_pretrained(tmp_path / "theirs")
    one, other = (
        {key: tensor.shape for key, tensor in load_peft_weights(tmp_path / side).items()}
        for side in ("ours", "theirs")
    )
    leftovers = {key for key in other if key.endswith((".original_module.bias", ".modules_to_save.bias"))}
    assert one == {key: shape for key, shape in other.items() if key not in leftovers}


@every
def test_both_write_the_same_config(case: Case, tmp_path: Path):
    ours(case).save_pretrained(tmp_path / "ours")
    theirs(case).save_pretrained(tmp_path / "theirs")
    one, other = (
        json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")
    )
    assert one.keys() <= other.keys()
    one.pop("peft_version", None)  # where PEFT wants one, ours is the first that has the method as it is now
    if (
        case.config.get("target_modules") == "all-linear"
    ):  # PEFT names each, we the shortest that mean the same
        del one["target_modules"]
    for value in (one, other):
        for field in ("target_modules", "exclude_modules", "target_parameters"):
            if isinstance(value.get(field), list):
                value[field] = sorted(value[field])
    assert one == {key: other[key] for key in one}


@every
def test_a_config_of_peft_is_read_whole(case: Case, tmp_path: Path):
    theirs(case).save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    for name, value in case.config.items():
        if name not in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
            assert getattr(config, name) == value
