"""`peftcli inspect` as a user runs it."""

from __future__ import annotations

import json

import pytest
import torch

from peftcli.cli.app import run
from tests.run.adapters import WEIGHTS, change_config, change_tensors, saved


@pytest.fixture
def adapter(tmp_path):
    return saved(tmp_path / "run", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", r=4)


def test_an_adapter_is_described_on_standard_output(peftcli, adapter):
    done = peftcli("inspect", "run", check=0)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "run: LORA for CAUSAL_LM",
        "  base      org/base",
        "  settings  r 4",
        "  targets   q_proj ×2, v_proj ×2",
        "  rank      4",
    ]
    assert (
        lines[5]
        == f"  size      224 numbers in 8 tensors of float32; {(adapter / WEIGHTS).stat().st_size:,} bytes"
    )
    assert lines[-2:] == ["  values    all finite", "  beside    README.md"]


def test_json_has_every_layer(adapter, capsys):
    assert run(["inspect", str(adapter), "--json"]) == 0
    out, error = capsys.readouterr()
    content = json.loads(out)
    assert error == ""
    assert (content["method"], content["ranks"], content["parameters"]) == ("LORA", {"4": 4}, 224)
    assert [layer["name"] for layer in content["layers"]][:1] == ["model.layers.0.self_attn.q_proj"]


def test_two_adapters_are_compared(adapter, tmp_path, capsys):
    other = saved(tmp_path / "other", target_modules=["q_proj"], task_type="CAUSAL_LM", r=2)
    assert run(["inspect", str(adapter), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  config    r: 4, other 2" in lines
    assert f"  only in   {adapter}: 2 (first: model.layers.0.self_attn.v_proj)" in lines
    assert run(["inspect", str(adapter), str(adapter), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["same"] is True
    assert content["distance"] == 0


def test_a_broken_adapter_is_shown_and_is_status_4(adapter, capsys):
    change_tensors(adapter, lambda tensors: {key: tensor * torch.nan for key, tensor in tensors.items()})
    assert run(["inspect", str(adapter), "--json"]) == 4
    out, error = capsys.readouterr()
    assert len(json.loads(out)["not_finite"]) == 8
    assert error.count("\n") == 1
    assert "(and 7 more) holds values that are not finite; the adapter is broken" in error


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "is a pickle"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), "damaged"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 9999), "cannot be read as JSON"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: change_config(folder, r=10**9), "r: must be from 1"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line_and_status_4(adapter, capsys, spoil, words):
    spoil(adapter)
    assert run(["inspect", str(adapter)]) == 4
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert words in error


def test_names_in_an_adapter_cannot_steer_the_terminal(adapter, capsys):
    name = "base_model.model.\x1b[31m\u202eevil\n.lora_A.weight"
    change_tensors(adapter, lambda tensors: tensors | {name: torch.ones(2, 2)})
    change_config(adapter, base_model_name_or_path="\x1b]0;title\x07", revision="\x1b[2J")
    for arguments in (["inspect", str(adapter)], ["inspect", str(adapter), str(adapter)]):
        assert run(arguments) == 0
    for target in ("vllm", "llamacpp", "peft"):
        run(["check", str(adapter), "--target", target])
    captured = "".join(capsys.readouterr())
    assert "\\x1b[31m\\u202eevil\\n" in captured
    assert not {"\x1b", "\u202e", "\x07"} & set(captured)
