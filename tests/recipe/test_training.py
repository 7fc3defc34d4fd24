"""The table of TrainingArguments' fields is that of the installed Transformers."""

import dataclasses
import inspect

import pytest

from peftcli.recipe import names
from peftcli.recipe.training import OWN, REFUSED, Training

# output_dir is required: without it Transformers writes to `trainer_output`.
DIFFERENT = {"output_dir"}


@pytest.fixture(scope="module")
def theirs():
    from transformers import Seq2SeqTrainingArguments

    return {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init}


def test_every_field_is_either_honoured_or_refused(theirs):
    honoured = set(Training.model_fields)
    assert not honoured & set(REFUSED)
    assert (honoured | set(REFUSED)) - set(OWN) == set(theirs)
    assert set(OWN) <= honoured


def test_every_default_is_theirs(theirs):
    for name, field in theirs.items():
        if name in Training.model_fields and name not in DIFFERENT:
            assert Training.model_fields[name].default == field.default, name


def test_every_honoured_field_says_what_it_is():
    undescribed = [name for name, field in Training.model_fields.items() if not field.description]
    assert undescribed == []


def test_schedules_and_optimizers_are_those_of_transformers():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(names.SCHEDULERS) == {schedule.value for schedule in SchedulerType}
    assert {*names.OPTIMIZERS, *names.REFUSED_OPTIMIZERS} == {name.value for name in OptimizerNames}
    assert not set(names.OPTIMIZERS) & set(names.REFUSED_OPTIMIZERS)


def test_the_quantization_fields_are_those_of_bits_and_bytes_config():
    from transformers import BitsAndBytesConfig

    parameters = inspect.signature(BitsAndBytesConfig).parameters
    assert set(names.QUANTIZATION) == set(parameters) - {"kwargs"}


def test_the_trackers_are_those_of_accelerate():
    from accelerate.utils import LoggerType

    assert {*names.TRACKERS} - {"none"} == {tracker.value for tracker in LoggerType}
