"""Merged models' folders: written whole or not at all, verified, with all that belongs beside the weights."""

from __future__ import annotations

import json
import os

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from peftcli.errors import ModelError, RecipeError
from peftcli.run import drift as drift_module
from peftcli.run import merge as merge_module
from peftcli.run.drift import drift, outputs, sample_inputs
from tests.conftest import byte_tokenizer, tiny_llama
from tests.run.merging import LAYERS, adapter, bases, lock, merged

# What stands beside.


def test_the_tokenizer_and_the_template_of_the_training_stand_beside(tmp_path):
    base = bases(tmp_path / "base", tiny_llama())
    byte_tokenizer().save_pretrained(base)
    folder = adapter(tmp_path / "run", base, **LAYERS)
    merged(folder, tmp_path / "plain")
    assert "im_start" in AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template
    lock(folder, base, chat_template="{{ messages[0]['content'] }}!")
    merged(folder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "hi!"


def test_a_base_without_a_tokenizer_is_merged_and_said_to_have_none(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    said = []
    merged(folder, tmp_path / "out", say=said.append)
    assert [line for line in said if "no tokenizer or processor" in line]


def test_settings_of_generation_are_kept_even_those_that_transformers_does_not_write(tmp_path):
    base = bases(tmp_path / "base")
    own = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(own | {"temperature": 0.6, "do_sample": False}))
    folder = adapter(tmp_path / "run", base, **LAYERS)
    merged(folder, tmp_path / "out")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (config.temperature, config.do_sample) == (0.6, False)


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    before = os.umask(0o027)
    try:
        merged(folder, tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_module, "SHARD_SIZE", "50KB")
    folder = adapter(tmp_path / "run", bases(tmp_path / "base", tiny_llama()), **LAYERS)
    result = merged(folder, tmp_path / "out")
    shards = [name for name in result.files if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert "model.safetensors.index.json" in result.files
    assert result.files == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}


# Where it is written.


def test_what_is_in_the_output_is_not_lost(tmp_path):
    base = bases(tmp_path / "base")
    folder = adapter(tmp_path / "run", base, **LAYERS)
    output = tmp_path / "out"
    output.mkdir()
    merged(folder, output, verify=False)  # an empty folder is no loss
    with pytest.raises(RecipeError, match=r"not empty.*--overwrite"):
        merged(folder, output)
    before = (output / "model.safetensors").stat().st_ino
    merged(folder, output, overwrite=True)
    assert (output / "model.safetensors").stat().st_ino != before
    for other, words in (
        (base, "the base's own folder"),
        (folder, "not the folder of a model alone"),
        (tmp_path, "not the folder of a model alone"),
        (base / "config.json", "is a file"),
    ):
        with pytest.raises(RecipeError, match=words):
            merged(folder, other, overwrite=True)
    (output / "mine").mkdir()
    with pytest.raises(RecipeError, match="not the folder of a model alone"):
        merged(folder, output, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "run"]


def test_a_model_that_drifts_is_not_written_and_the_one_before_stays(tmp_path, monkeypatch):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    merged(folder, tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setitem(drift_module.TOLERANCES, "bfloat16", 1e-9)
    with pytest.raises(ModelError, match=r"drifts: logits differ by at most .*tolerance .* for bfloat16"):
        merged(folder, tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "run"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    folder = adapter(tmp_path / "run", bases(tmp_path / "base"), **LAYERS)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written: File exists"):
        merged(folder, tmp_path / "file" / "out")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    import resource

    folder = adapter(tmp_path / "run", bases(tmp_path / "base", tiny_llama()), **LAYERS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RecipeError, match="cannot be written"):
            merged(folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


# What verifying sees.


def test_drift_is_seen_however_small_the_adapter(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(bases(tmp_path / "base"))
    inputs = sample_inputs(base)
    plain = outputs(base, inputs)
    shifted = [{"logits": each["logits"] + 0.005} for each in plain]
    assert drift(plain, shifted, shifted, "bfloat16").is_small
    lost = drift(plain, shifted, plain, "bfloat16")
    assert lost.largest < lost.tolerance
    assert not lost.is_small
    halfway = [{"logits": each["logits"] + 0.002} for each in plain]
    assert not drift(plain, shifted, halfway, "bfloat16").is_small
    broken = [{"logits": each["logits"] * torch.nan} for each in plain]
    assert not drift(plain, shifted, broken, "bfloat16").is_small
    assert not drift(plain, broken, broken, "bfloat16").is_small
    # An adapter that does nothing is in every base.
    assert drift(plain, plain, plain, "float32").is_small


def test_of_several_outputs_the_one_that_drifts_counts():
    one = [{"logits": torch.ones(1, 3), "hidden": torch.full((1, 3), 1000.0)}]
    other = [{"logits": torch.tensor([[1.0, 1.0, 1.1]]), "hidden": torch.full((1, 3), 1000.0)}]
    found = drift(other, one, other, "float32")
    assert found.output == "logits"
    assert not found.is_small


def test_masked_outputs_that_are_infinite_in_both_are_alike():
    masked = [{"logits": torch.tensor([[1.0, -torch.inf]])}]
    assert drift(masked, masked, masked, "float32").is_small
