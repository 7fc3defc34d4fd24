"""`peftcli check DIR --target PROGRAM` as a user runs it."""

from __future__ import annotations

import json

import pytest

from peftcli.cli.app import run
from tests.run.adapters import change_config, saved


@pytest.fixture
def adapter(tmp_path):
    return saved(tmp_path / "run", target_modules=["q_proj"])


def test_the_command_that_serves_it_is_alone_on_standard_output(peftcli, adapter):
    done = peftcli("check", "run", "--target", "vllm", check=0)
    assert done.stderr == "run: ok for vLLM\n"
    assert done.stdout == (
        f"vllm serve org/base --enable-lora --lora-modules run={adapter} --max-lora-rank 8\n"
    )


def test_an_adapter_that_will_not_load_is_status_4_with_a_line_for_each_reason(adapter, capsys):
    change_config(adapter, use_dora=True, bias="all")
    assert run(["check", str(adapter), "--target", "vllm"]) == 4
    out, error = capsys.readouterr()
    assert out == ""
    dora, bias, verdict = error.splitlines()
    assert dora == (
        f"error: use_dora: vLLM does not support DoRA; merge it: peftcli merge --adapter {adapter} "
        f"--output {adapter}-merged --verify"
    )
    assert bias.startswith("error: bias: vLLM does not support trained biases; ")
    assert verdict == f"{adapter}: not for vLLM"


def test_json_is_written_either_way(adapter, capsys):
    assert run(["check", str(adapter), "--target", "llamacpp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commands"][-1].startswith("llama-server ")
    change_config(adapter, use_dora=True)
    assert run(["check", str(adapter), "--target", "llamacpp", "--json"]) == 4
    content = json.loads(capsys.readouterr().out)
    assert (content["ok"], content["findings"][0]["where"]) == (False, "use_dora")


@pytest.mark.parametrize(
    "case",
    [
        (["run"], 2, "run is a folder, and no recipe; to check an adapter, say for what: --target"),
        (["run", "--target", "ollama"], 2, "--target"),
        (["run", "--target", "vllm", "--data"], 2, "leave --data out"),
        (["run", "--target", "vllm", "--set", "a=1"], 2, "leave --set out"),
        (["run", "--target", "vllm", "--lock", "--data"], 2, "leave --data and --lock out"),
        (["gone", "--target", "vllm"], 4, "there is no folder"),
        (["run/adapter_config.json", "--target", "peft"], 4, "is a file"),
    ],
)
def test_a_mistake_is_one_line(adapter, capsys, monkeypatch, case):
    arguments, status, words = case
    monkeypatch.chdir(adapter.parent)
    assert run(["check", *arguments]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
