"""Hostile recipes and command lines: one line, status 2, no time and no memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

RECIPE = (
    "base_model: org/model\ntask_type: CAUSAL_LM\nadapter: {peft_type: LORA}\n"
    "data: {train: {path: rows.jsonl}}\ntraining: {output_dir: out}\n"
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "a billion laughs": (BOMB, "once its aliases are expanded"),
    "an alias within itself": ("a: &a [*a]\n", "nested deeper than"),
    "merges that double": (
        "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a]}}\n" for n in range(30)) + "zzz: 1\n",
        "",
    ),
    "a tag that calls Python": (RECIPE + "seed: !!python/object/apply:os.system [id]\n", "is not allowed"),
    "a tag of its own": (RECIPE + "x: !evil {a: 1}\n", "is not allowed"),
    "a key given twice": (RECIPE + "base_model: other\n", "given twice"),
    "nesting without end": ("a: " + "[" * 100_000, "nested deeper than"),
    "block nesting without end": ("".join(f"{' ' * n}a:\n" for n in range(1200)), "nested deeper than"),
    "a number of 10,000 digits": (RECIPE + f"revision: {'9' * 10_000}\n", "cannot be read"),
    "NUL": (RECIPE + 'system: "a\\0b"\n', "NUL"),
    "half a surrogate pair": (RECIPE + 'x: "\\ud800"\n', "not valid Unicode"),
    "a rank that is no number": (RECIPE.replace("LORA", "LORA, r: .nan"), "adapter.r"),
    "an infinite learning rate": (RECIPE.replace("out}", "out, learning_rate: .inf}"), "learning_rate"),
    "a name that steers the terminal": (RECIPE + '"\\e[31mx": 1\n', "\\x1b[31mx"),
    "a base with a name beyond all paths": (RECIPE.replace("org/model", "a" * 300), ""),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_a_hostile_recipe_is_one_line(tmp_path: Path, refused, capsys, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size < 10**6
    if text.startswith("base_model: aaa"):
        # Its form is right; that there is no such model is seen where it is looked for.
        assert "longer than any path" in refused(4, "check", path, "--data")
    else:
        assert words in refused(2, "check", path)


def test_a_recipe_of_100_mb_is_not_read_whole(tmp_path: Path, refused):
    path = tmp_path / "r.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "which no recipe is" in refused(2, "check", path)


VALUES = {
    "nesting": "data.train=" + "[" * 50_000,
    "a bomb": "data.train=[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c], [*d,*d,*d,*d,*d,*d,*d,*d,*d]]",
    "a tag": "data.train=[!!python/name:os.system x]",
    "digits": "adapter.r=" + "9" * 10_000,
    "not a number": "training.learning_rate=.nan",
    "half a pair": "data.system_prompt=\udc80",
    "a deep key": ".".join(["a"] * 20_000) + "=1",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_hostile_set_is_one_line(tmp_path: Path, refused, value):
    (tmp_path / "r.yaml").write_text(RECIPE)
    refused(2, "check", tmp_path / "r.yaml", "--set", value)


def test_the_bomb_is_one_that_others_take():
    assert yaml.safe_load(BOMB[: BOMB.index("d:")])["c"][0][0][0] == "x"


def test_a_recipe_alone_makes_a_base_s_code_run_and_the_lock_tells_it(adapter, refused):
    from peftcli.run.lock import Lock, read_lock, write_lock
    from tests.run.adapters import change_config

    base = adapter.parent / "base"
    base.mkdir()
    (base / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}')
    (base / "evil.py").write_text("raise SystemExit('the code ran')")
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    change_config(adapter, base_model_name_or_path=str(base))
    recipe = {"base_model": str(base), "task_type": "CAUSAL_LM", "trust_remote_code": True, "data": {}}
    write_lock(adapter, Lock(recipe, {}, {"format": "text"}, {}, None))
    assert read_lock(adapter).recipe["trust_remote_code"] is True
    rows = adapter.parent / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    for command in (
        ["generate", "--adapter", adapter, "--prompt", "a"],
        ["merge", "--adapter", adapter, "--output", adapter.parent / "merged"],
        ["eval", adapter, "--data", rows],
        ["predict", "--adapter", adapter, "--input", rows],
    ):
        assert "--trust-remote-code" in refused(4, *command)
    (adapter / "recipe.lock.yaml").unlink()
    assert "brings its own Python code" in refused(4, "generate", "--adapter", adapter, "--prompt", "a")


def test_a_lock_s_chat_template_names_no_file(adapter, refused):
    from peftcli.run.lock import Lock, write_lock

    recipe = {"base_model": "x", "task_type": "CAUSAL_LM", "data": {}}
    write_lock(adapter, Lock(recipe, {}, {"format": "chat"}, {}, "/etc/passwd"))
    assert "is no Jinja template" in refused(4, "generate", "--adapter", adapter, "--prompt", "a")
