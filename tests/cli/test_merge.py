"""`peftcli merge` as a user runs it."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from peftcli.cli.app import run
from tests.run.adapters import saved


@pytest.fixture
def adapter(tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    return saved(
        tmp_path / "run", model, target_modules=["q_proj"], task_type="CAUSAL_LM",
        base_model_name_or_path=str(tiny_base),
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_a_model_and_says_where(peftcli, adapter):
    done = peftcli("merge", "--adapter", "run", "--output", "out", "--verify", check=0)
    assert done.stdout == "out\n"
    verified, wrote = done.stderr.splitlines()
    assert verified.startswith("verified: logits differ by at most ")
    assert "tolerance" in verified
    assert "in float32" in wrote
    assert (adapter.parent / "out" / "model.safetensors").is_file()


def test_json_is_alone_on_standard_output(adapter, tmp_path, capsys):
    arguments = ["merge", "--adapter", str(adapter), "--output", str(tmp_path / "out"), "--json"]
    assert run([*arguments, "--dtype", "bfloat16", "--verify"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["method"], content["dtype"]) == ("LORA", "bfloat16")
    assert content["verified"]["largest_difference"] < content["verified"]["tolerance"]
    assert {file["path"] for file in content["files"]} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert run([*arguments, "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is None


@pytest.mark.parametrize(
    "case",
    [
        (["--adapter", "nowhere", "--output", "new"], 4, "there is no folder"),
        (["--adapter", "run", "--output", "run"], 2, "not empty"),
        (["--adapter", "run", "--output", "new", "--base", "./gone"], 4, "./gone"),
        (["--adapter", "run", "--output", "new", "--dtype", "int8"], 2, "--dtype"),
        (["--adapter", "run"], 2, "--output"),
    ],
)
def test_what_cannot_be_merged_is_one_line(adapter, capsys, monkeypatch, case):
    arguments, status, words = case
    monkeypatch.chdir(adapter.parent)
    assert run(["merge", *arguments]) == status
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert words in error


def test_a_prompt_is_refused_by_its_name(tmp_path, capsys):
    folder = saved(tmp_path / "run", peft_type="PROMPT_TUNING", task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert run(["merge", "--adapter", str(folder), "--output", str(tmp_path / "out")]) == 4
    assert capsys.readouterr().err == (
        "error: PROMPT_TUNING stands before the model's input: it cannot be merged into the base's weights\n"
    )
