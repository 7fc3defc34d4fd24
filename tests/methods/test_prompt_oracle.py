"""Real PEFT and ours read one another's prompts, name everything alike, and give and generate the same."""

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
from tests.methods.cases import shake
from tests.methods.prompt_cases import PROMPT_CASES, PromptCase, build, generated, inputs, labels, outputs

pytestmark = [
    # PEFT's own remarks.
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
ORACLE = [case for case in PROMPT_CASES if case.oracle]
every = pytest.mark.parametrize("case", ORACLE, ids=str)
generating = pytest.mark.parametrize(
    "case", [case for case in ORACLE if case.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM")], ids=str
)
FLOAT = torch.float32


def ours(case: PromptCase) -> PeftModel:
    config = resolve(METHODS, case.peft_type, what="peft_type")(**case.arguments())
    return get_peft_model(build(case, FLOAT), config)


def theirs(case: PromptCase) -> Any:
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[case.peft_type](**case.arguments())
    return peft.get_peft_model(build(case, FLOAT), config)


def both(case: PromptCase, folder: Path) -> tuple[PeftModel, Any]:
    """A trained prompt of ours, and PEFT's model with the same."""
    model = ours(case)
    shake(model)
    model.save_pretrained(folder)
    return model, peft.PeftModel.from_pretrained(build(case, FLOAT), folder)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every
def test_parameters_have_peft_s_names_shapes_and_gradients(case: PromptCase):
    one = {name: (p.shape, p.dtype, p.requires_grad) for name, p in ours(case).named_parameters()}
    other = {name: (p.shape, p.dtype, p.requires_grad) for name, p in theirs(case).named_parameters()}
    assert one == other


@every
def test_the_printed_count_of_parameters_is_peft_s(case: PromptCase, capsys: pytest.CaptureFixture[str]):
    ours(case).print_trainable_parameters()
    mine = capsys.readouterr().out
    theirs(case).print_trainable_parameters()
    assert mine == capsys.readouterr().out


@every
def test_peft_loads_our_files_and_gives_the_same(
    case: PromptCase, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    model, loaded = both(case, tmp_path)
    assert not [str(warning.message) for warning in recwarn if "keys" in str(warning.message)]
    close(outputs(model, inputs(case)), outputs(loaded, inputs(case)))


@every
def test_ours_loads_peft_s_files_and_gives_the_same(case: PromptCase, tmp_path: Path):
    model = theirs(case).eval()  # else it saves what its network makes with dropout
    shake(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(case, FLOAT), tmp_path)
    close(outputs(loaded, inputs(case)), outputs(model, inputs(case)))


@every
def test_a_prompt_in_training_gives_what_peft_s_gives_and_has_its_loss_and_gradient(case: PromptCase):
    model, other = ours(case), theirs(case)
    shake(model)
    other.load_state_dict(model.state_dict(), strict=False)
    close(outputs(model, inputs(case)), outputs(other, inputs(case)))
    # PEFT leaves the labels of tokens, and the places of answers, where they were without the prompt.
    shifted = case.task_type in ("TOKEN_CLS", "QUESTION_ANS") and case.peft_type != "PREFIX_TUNING"
    # Where its prompt does not end with a label, PEFT's CPT takes no token of a row for one: its loss is NaN.
    unlabelled = case.peft_type == "CPT" and "cpt_tokens_type_mask" not in case.config
    if shifted or unlabelled or not labels(case):
        return
    arguments = {**inputs(case), **labels(case)}
    arguments.pop("decoder_input_ids", None)
    one, two = model.eval()(**arguments).loss, other.eval()(**arguments).loss
    close(one, two)
    one.backward()
    two.backward()
    for (name, mine), (_, its) in zip(
        model.prompt_encoder.named_parameters(), other.prompt_encoder.named_parameters(), strict=True
    ):
        assert (mine.grad is None) == (its.grad is None), name
        if mine.grad is not None:
            close(mine.grad, its.grad)


@generating
def test_both_generate_the_same(case: PromptCase, tmp_path: Path):
    model, loaded = both(case, tmp_path)
    for settings in ({}, {"num_beams": 2}):
        if "task_ids" in inputs(case) and settings:
            continue  # PEFT does not repeat the tasks for the beams
        one, other = (generated(each, inputs(case), **settings) for each in (model, loaded))
        assert torch.equal(one, other)


@every
def test_both_write_the_same_keys_and_shapes(case: PromptCase, tmp_path: Path):
    ours(case).save_pretrained(tmp_path / "ours")
    theirs(case).save_pretrained(tmp_path / "theirs")
    one, other = (
        {key: tensor.shape for key, tensor in load_peft_weights(tmp_path / side).items()}
        for side in ("ours", "theirs")
    )
    assert one == other


@every
def test_both_write_the_same_config(case: PromptCase, tmp_path: Path):
    ours(case).save_pretrained(tmp_path / "ours")
    theirs(case).save_pretrained(tmp_path / "theirs")
    one, other = (
        json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")
    )
    assert one.keys() <= other.keys()
    if other["modules_to_save"]:  # PEFT names a task's heads twice
        other["modules_to_save"] = list(dict.fromkeys(other["modules_to_save"]))
    assert one == {key: other[key] for key in one}


@every
def test_a_config_of_peft_is_read_whole(case: PromptCase, tmp_path: Path):
    theirs(case).save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    for name, value in case.arguments().items():
        if name != "modules_to_save":
            assert getattr(config, name) == value
