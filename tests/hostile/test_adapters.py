"""Strangers' adapters: every spoiled folder is one line and status 4, in all the commands that open it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.cli.app import run
from tests.hostile.watch import watched
from tests.run.adapters import WEIGHTS, change_config, change_tensors

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def commands(folder: Path) -> list[list[Any]]:
    return [
        ["inspect", folder],
        ["generate", "--adapter", folder, "--prompt", "a", "--max-new-tokens", 1],
        ["merge", "--adapter", folder, "--output", folder.parent / "merged"],
    ]


class Bomb:
    """What a pickle of it runs when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/peftcli-was-hacked"),))


PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin")


@pytest.mark.parametrize("name", PICKLES)
def test_an_adapter_that_is_a_pickle_is_refused_unread(adapter, refused, name):
    (adapter / WEIGHTS).unlink()
    torch.save(Bomb(), adapter / name)
    for command in commands(adapter):
        assert f"{name} is a pickle, which can run code when it is read" in refused(4, *command)


def test_a_pickle_under_the_name_of_safetensors_is_refused_unread(adapter, refused):
    torch.save(Bomb(), adapter / WEIGHTS)
    for command in commands(adapter):
        assert "is damaged or no safetensors file" in refused(4, *command)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_base_that_is_a_pickle_is_refused_unread(adapter, refused, tiny_base, tmp_path, name):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    torch.save(Bomb(), base / name)
    change_config(adapter, base_model_name_or_path=str(base))
    for command in commands(adapter)[1:]:
        assert "base" in refused(4, *command)
    assert not Path("/tmp/peftcli-was-hacked").exists()


def head(folder: Path, content: Any, data: bytes = b"", length: int | None = None) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    size = len(text) if length is None else length
    (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text + data)


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
HEADS: dict[str, Callable[[Path], object]] = {
    "offsets past the end": lambda at: head(at, {"a": entry(shape=[1000], offsets=[0, 4000])}, bytes(8)),
    "offsets that overlap": lambda at: head(at, {"a": entry(), "b": entry()}, bytes(8)),
    "negative offsets": lambda at: head(at, {"a": entry(shape=[-1], offsets=[0, -4])}, bytes(8)),
    "a shape beyond all memory": lambda at: head(at, {"a": entry(shape=[2**62, 4])}, bytes(4)),
    "the same key twice": lambda at: head(at, TWICE, bytes(4)),
    "an unknown type": lambda at: head(at, {"a": entry("F33")}, bytes(4)),
    "half bytes": lambda at: head(at, {KEY: entry("F4", [2], [0, 1])}, bytes(1)),
    "complex numbers": lambda at: head(at, {KEY: entry("C64", [1], [0, 8])}, bytes(8)),
    "a head of 100 MB": lambda at: head(at, b"{" + b" " * (100 * 2**20 - 2) + b"}"),
    "a head that claims more than the file": lambda at: head(at, b"{}", length=2**63),
    "a head nested without end": lambda at: head(at, b'{"a":' + b"[" * 100_000),
    "a head that is no object": lambda at: head(at, b"[1, 2]"),
    "a head that is no text": lambda at: head(at, b"\xff\xfe"),
    "a file cut short": lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-10]),
    "a file of three bytes": lambda at: (at / WEIGHTS).write_bytes(b"abc"),
    "an empty file": lambda at: (at / WEIGHTS).write_bytes(b""),
    "a folder": lambda at: ((at / WEIGHTS).unlink(), (at / WEIGHTS).mkdir()),
}


@pytest.mark.parametrize("spoil", HEADS.values(), ids=HEADS)
def test_a_broken_safetensors_file_is_one_line(adapter, refused, spoil):
    spoil(adapter)
    for command in commands(adapter):
        assert str(adapter) in refused(4, *command)


def other(value: Any) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {KEY: value(tensors[KEY])}


TENSORS: dict[str, tuple[Any, str]] = {
    "a wrong shape": (other(lambda tensor: tensor[:3].contiguous()), "has another shape"),
    "a scalar": (other(lambda tensor: tensor.sum()), "has another shape"),
    "whole numbers": (other(lambda tensor: tensor.long()), "numbers of another kind"),
    "truth values": (other(lambda tensor: tensor > 0), "numbers of another kind"),
    "a foreign key": (lambda tensors: tensors | {"evil.weight": torch.ones(2)}, "holds evil.weight"),
    "a missing key": (lambda tensors: {k: v for k, v in tensors.items() if k != KEY}, "has no base_model."),
    "values that are not finite": (other(lambda tensor: tensor * float("nan")), "not finite"),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_the_model_s_are_refused_before_one_is_used(adapter, refused, change, words):
    change_tensors(adapter, change)
    for command in commands(adapter)[1:]:
        assert words in refused(4, *command)


def test_eight_bit_floats_are_read_in_the_type_that_can_be_computed_in(adapter, tmp_path, capsys):
    change_tensors(adapter, other(lambda tensor: tensor.to(torch.float8_e4m3fn)))
    for command in commands(adapter):
        with watched(tmp_path):
            assert run([*map(str, command)]) == 0, capsys.readouterr().err


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": ({"peft_type": "EVIL"}, "is not a method"),
    "a method that is a list": ({"peft_type": ["LORA"]}, "is not a method"),
    "a rank of 10**9": ({"r": 10**9}, "must be from 1 to"),
    "a rank of 400 digits": ({"r": 10**400}, "must be from 1 to"),
    "a factor of 400 digits": ({"lora_alpha": 10**400}, "must be a finite number"),
    "a dropout that is no number": ({"lora_dropout": float("nan")}, "must be at least 0 and below 1"),
    "a million targets": (
        {"target_modules": [f"m{n}" for n in range(10**6)]},
        "which no adapter's config is",
    ),
    "a million layers": ({"layers_to_transform": [*range(10**6)]}, "10,000 are the most"),
    "too many saved modules": ({"modules_to_save": [f"m{n}" for n in range(20_000)]}, "10,000 are the most"),
    "too many ranks": ({"rank_pattern": {f"m{n}": 2 for n in range(20_000)}}, "10,000 are the most"),
    "an unknown task": ({"task_type": "EVIL"}, "task_type"),
    "a task that is a list": ({"task_type": ["CAUSAL_LM"]}, "task_type"),
    "a base with a name beyond all paths": ({"base_model_name_or_path": "a" * 10**6}, "longer than any path"),
    "a part beyond all paths": ({"base_model_name_or_path": "x/" + "a" * 300}, "longer than any path"),
    "a revision that is a number": ({"revision": 3}, "revision"),
    "a field of nobody's": ({"evil": 1}, "does not know"),
    "brackets without end": ({"target_modules": "(" * 2000 + ")" * 2000}, "nested too deep"),
}


@pytest.mark.parametrize(("fields", "words"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_with_hostile_values_is_one_line(adapter, refused, fields, words):
    change_config(adapter, **fields)
    for command in commands(adapter):
        assert words in refused(4, *command)


FILES = {
    "nested without end": b"[" * 10**6,
    "100 MB": b'{"peft_type": "LORA", "x": "' + b"a" * 10**8 + b'"}',
    "null": b"null",
    "no JSON": b"\xff\xfe\x00",
    "a number of 10,000 digits": b'{"r": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_config_that_is_none_is_one_line(adapter, refused, content):
    (adapter / "adapter_config.json").write_bytes(content)
    for command in commands(adapter):
        assert "adapter_config.json" in refused(4, *command)


@pytest.mark.parametrize(
    "base", ["/etc", "../../../../etc", "~", "a\0b", "\x1b[31m/x", "\ud800", "file:///etc/passwd"]
)
def test_a_base_anywhere_on_the_disk_is_read_only_as_a_model(adapter, refused, base):
    change_config(adapter, base_model_name_or_path=base)
    for command in commands(adapter)[1:]:
        refused(4, *command)


def test_auto_mapping_imports_nothing(adapter, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    mapping = {"base_model_class": "Evil", "parent_library": "evil_module"}
    change_config(adapter, auto_mapping=mapping, task_type=None)
    for command in commands(adapter):
        with watched(tmp_path):
            assert run([*map(str, command)]) == 0, capsys.readouterr().err


# Python's `re` never ends with the first two; `regex`, with which names are matched, sees through them.
CLASSICS = [r"(?:[a-z_.0-9]+)+\Z!", r"(.*.*.*.*.*.*.*.*.*.*.*.*)!", r"(?:a|b|[a-z_.0-9])*x!"]
NASTY = "".join(f"(?P<g{n}>.*)" for n in range(9)) + "".join(f"(?P=g{n})" for n in range(9)) + "[xyz]"


@pytest.mark.parametrize("text", CLASSICS)
def test_the_classical_expressions_without_end_come_to_one(adapter, refused, text):
    change_config(adapter, target_modules=text)
    assert "matches no whole module name" in refused(4, *commands(adapter)[1])


PATTERNS: dict[str, dict[str, Any]] = {
    "target_modules": {"target_modules": NASTY},
    "exclude_modules": {"exclude_modules": NASTY},
    "modules_to_save": {"modules_to_save": [NASTY]},
    "layers_pattern": {"layers_pattern": [NASTY], "layers_to_transform": [0]},
    "rank_pattern": {"rank_pattern": {NASTY: 2}},
    "alpha_pattern": {"alpha_pattern": {NASTY: 2}},
}


@pytest.mark.parametrize("fields", PATTERNS.values(), ids=PATTERNS)
def test_an_expression_that_takes_for_ever_is_given_up(adapter, refused, monkeypatch, fields):
    monkeypatch.setattr("peftcli.adapters.patterns.BUDGET", 0.2)
    monkeypatch.setattr("peftcli.adapters.patterns._spent", [0.0])
    change_config(adapter, **fields)
    assert "takes too long to match a name" in refused(4, *commands(adapter)[1])


def test_expressions_mean_what_re_makes_of_them():
    import re

    from peftcli.adapters.patterns import Expression

    names = [
        "model.layers.10.self_attn.q_proj",
        "lm_head",
        "model.layers.1.mlp.down_proj",
        "h.0.attn.c_attn",
        "",
    ]
    for text in (r".*\.(q|v)_proj", r".*(self_attn|mlp).*proj", r"model\.layers\.\d+\..*", "lm_head", r"(?i).*Q_PROJ",
                 r"(?!lm).*", r".*layers\.(1|10)\..*_proj$", r"^h\.\d+\..+", r".{0,7}", r"[^.]*"):  # fmt: skip
        for name in names:
            for way in ("match", "fullmatch"):
                ours = getattr(Expression(text), way)(name)
                theirs = getattr(re.compile(text), way)(name)
                assert (ours and ours.span()) == (theirs and theirs.span()), (text, name)


def test_names_in_an_adapter_reach_no_terminal_as_they_are(adapter, tmp_path, capsys):
    steering = "base_model.model.\x1b[2J\x9b31m\u202eevil.lora_A.weight"
    change_tensors(adapter, lambda tensors: tensors | {steering: torch.ones(2, 2)})
    for command in (
        *commands(adapter),
        ["inspect", adapter, "--json"],
        ["check", adapter, "--target", "peft"],
    ):
        with watched(tmp_path):
            run([*map(str, command)])
        said = "".join(capsys.readouterr())
        assert "evil" in said
        assert not {"\x1b", "\x9b", "\u202e"} & set(said)


def test_what_is_spoiled_here_is_an_adapter_that_works(adapter, tmp_path, capsys):
    assert KEY in load_file(adapter / WEIGHTS)
    for command in commands(adapter):
        with watched(tmp_path):
            assert run([*map(str, command)]) == 0, capsys.readouterr().err
