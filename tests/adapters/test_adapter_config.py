"""adapter_config.json: checked, complete, in order, and read whoever wrote it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import peft
import pytest

from peftcli.adapters.config import PeftConfig, PeftType, TaskType, from_dict
from peftcli.errors import AdapterConfigError, AdapterError
from peftcli.methods.lora.config import LoraConfig


def problems(**fields) -> dict[str, str]:
    with pytest.raises(AdapterConfigError) as caught:
        LoraConfig(**fields)
    return dict(caught.value.fields)


def test_types_and_tasks_are_peft_s():
    assert [item.value for item in PeftType] == [item.value for item in peft.PeftType]
    assert {item.value for item in TaskType} == {item.value for item in peft.TaskType}


def test_every_field_of_peft_is_known_here_with_its_default_or_put_off_by_name():
    written = peft.LoraConfig().to_dict() | {"runtime_config": {"ephemeral_gpu_offload": False}}
    own = {item.name for item in dataclasses.fields(LoraConfig)}
    assert own | set(LoraConfig.DEFERRED) == {item.name for item in dataclasses.fields(peft.LoraConfig)}
    assert not own & set(LoraConfig.DEFERRED)
    for name, default in LoraConfig.DEFERRED.items():
        assert written[name] == default
    ours = LoraConfig()
    for name in own - {"peft_version"}:
        assert getattr(ours, name) == written[name], name


def test_every_field_says_what_it_is_for():
    assert all(item.metadata["help"] for item in dataclasses.fields(LoraConfig))


def test_all_problems_come_at_once():
    assert set(problems(r=0, lora_alpha=None, lora_dropout=1, bias="some", target_modules="(", rr=1)) == {
        "r",
        "lora_alpha",
        "lora_dropout",
        "bias",
        "target_modules",
        "rr",
    }


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("r", 0, "from 1 to"),
        ("r", 2**16 + 1, "from 1 to"),
        ("r", "8", "whole number"),
        ("r", True, "whole number"),
        ("lora_alpha", None, "not null"),
        ("lora_alpha", float("nan"), "finite"),
        ("lora_dropout", -0.1, "at least 0"),
        ("target_modules", [], "empty list"),
        ("target_modules", 3, "regular expression"),
        ("target_modules", "q(", "not a regular expression"),
        ("target_modules", "a" * 5000, "5000 characters"),
        ("exclude_modules", [""], "module names only"),
        ("modules_to_save", "head", "a list of module names"),
        ("init_lora_weights", "pisa", "did you mean 'pissa'"),
        ("init_lora_weights", "mica", "not supported yet"),
        ("init_lora_weights", None, "must be true, false"),
        ("bias", "al", "none, all, lora_only"),
        ("use_dora", "yes", "true or false"),
        ("layers_to_transform", [-1], "from 0 up"),
        ("rank_pattern", {"q_proj": 0}, "'q_proj' must be from 1"),
        ("rank_pattern", {"(": 4}, "key is not a regular expression"),
        ("alpha_pattern", [4], "must be a mapping"),
        ("task_type", "CAUSAL", "did you mean 'CAUSAL_LM'"),
        ("lora_r", 8, "is not a field of LoraConfig"),
        ("lora_aplha", 8, "did you mean 'lora_alpha'"),
        ("target_parameters", "experts", "a list of parameter names"),
        ("peft_type", "IA3", "is not LORA"),
    ],
)
def test_a_wrong_value_is_refused_in_words(field: str, value: object, said: str):
    assert said in problems(**{field: value})[field]


def test_layer_numbers_beside_a_regular_expression_are_refused():
    found = problems(target_modules="all-linear", layers_to_transform=[0], layers_pattern="layers")
    assert set(found) == {"layers_to_transform", "layers_pattern"}
    assert "layers_pattern" in problems(target_modules=["q"], layers_pattern="layers")


def test_the_same_config_is_written_the_same_whatever_the_order(tmp_path: Path):
    one = LoraConfig(target_modules=["v", "q"], rank_pattern={"b": 2, "a": 4}, exclude_modules={"x", "w"})
    other = LoraConfig(target_modules={"q", "v"}, rank_pattern={"a": 4, "b": 2}, exclude_modules=["w", "x"])
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    text = (tmp_path / "one" / "adapter_config.json").read_text()
    assert text == (tmp_path / "other" / "adapter_config.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_copies_are_equal():
    config = LoraConfig(r=4, target_modules=["q"], task_type="CAUSAL_LM")
    assert pickle.loads(pickle.dumps(config)) == dataclasses.replace(config) == config


def test_peft_reads_ours_without_a_word_and_ours_reads_peft_s(tmp_path: Path):
    LoraConfig(r=3, target_modules=["q"], task_type="SEQ_CLS", rank_pattern={"q": 4}).save_pretrained(
        tmp_path
    )
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert (read.r, read.target_modules, read.task_type, read.rank_pattern) == (3, {"q"}, "SEQ_CLS", {"q": 4})
    peft.LoraConfig(r=5, target_modules=["q", "v"], use_rslora=True).save_pretrained(tmp_path / "theirs")
    mine = PeftConfig.from_pretrained(tmp_path / "theirs")
    assert isinstance(mine, LoraConfig)
    assert (mine.r, mine.target_modules, mine.use_rslora) == (5, ["q", "v"], True) or mine.target_modules == [
        "v",
        "q",
    ]


def test_a_field_we_put_off_is_refused_when_it_says_something():
    with pytest.raises(AdapterConfigError, match="kasa_config: is not supported yet"):
        from_dict({"peft_type": "LORA", "kasa_config": {"beta": 2.0}})
    assert isinstance(from_dict({"peft_type": "LORA", "kasa_config": None, "loftq_config": {}}), LoraConfig)


def test_an_unknown_field_is_passed_over_aloud_when_empty_and_refused_otherwise():
    with pytest.warns(UserWarning, match="'brand_new' is unset"):
        from_dict({"peft_type": "LORA", "brand_new": None})
    with pytest.raises(AdapterConfigError, match=r"brand_new.*newer PEFT"):
        from_dict({"peft_type": "LORA", "brand_new": 3})
    with pytest.raises(AdapterConfigError, match="nearest that it knows is 'use_dora'"):
        from_dict({"peft_type": "LORA", "use_dorra": True})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is missing"),
        ("IA4", "is not a method"),
        ("XLORA", "is not supported yet"),
        (3, "is not a method"),
    ],
)
def test_a_method_that_is_not_there_is_refused_with_those_that_are(value: object, said: str):
    with pytest.raises(AdapterConfigError, match=said) as caught:
        from_dict({"peft_type": value})
    assert "LORA" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "no JSON object"),
        (None, "no adapter_config"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=said) as caught:
        PeftConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_the_first_pattern_that_fits_is_the_same_before_and_after_saving():
    config = LoraConfig(target_modules=["q"], rank_pattern={"q": 2, r".*q": 4})
    assert list(config.rank_pattern) == list(from_dict(config.to_dict()).rank_pattern)
