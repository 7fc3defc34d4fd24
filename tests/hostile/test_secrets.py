"""What must not get out: the token, a file behind a link; and what must not reach a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.terminal import inert_json
from tests.run.adapters import change_config

TOKEN = "hf_thisTokenMustNeverBeSeenAnywhere"
ROOT = Path(__file__).parents[2]


def command(*arguments: Any, **more: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "peftcli", *map(str, arguments)], env=environment, capture_output=True, **more
    )


@pytest.mark.slow
def test_the_token_is_in_nothing_that_a_run_writes_or_says(tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(8)))
    recipe = {
        "base_model": str(tiny_base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA"},
        "data": {"train": {"path": str(rows)}, "eval": 0.25, "max_length": 64},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "save_steps": 1,
            "eval_strategy": "steps",
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = tmp_path / "run"
    said = [
        command("train", tmp_path / "recipe.yaml", "--debug"),
        command("generate", "--adapter", run, "--prompt", "a", "--max-new-tokens", 2),
        command("report", run),
        command("merge", "--adapter", run, "--output", tmp_path / "merged"),
    ]
    assert [done.returncode for done in said] == [0, 0, 0, 0], said
    # Errors, with tracebacks: of the Hub that cannot be reached, and of the upload.
    change_config(run, base_model_name_or_path="org/none")
    (run / "recipe.lock.yaml").rename(tmp_path / "recipe.lock.yaml")
    failing = [
        command("generate", "--adapter", run, "--prompt", "a", "--debug"),
        command("push", run, "org/name", "--debug"),
        command("check", tmp_path / "recipe.yaml", "--data", "--debug", "--set", "base_model=org/none"),
    ]
    assert all(done.returncode == 8 for done in failing), failing
    for done in [*said, *failing]:
        assert TOKEN.encode() not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "name", ["README.md", "tokenizer.json", "recipe.lock.yaml", "adapter_model.safetensors"]
)
def test_a_link_out_of_the_folder_is_not_pushed(adapter, refused, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("base: {}\ndata: {}\nrecipe: {base_model: x}\nversions: {}\nchat_template: null\n")
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(secret)
    assert f"{name}: is a link out of the folder" in refused(4, "push", adapter, "org/name", "--dry-run")


def test_a_folder_that_is_a_link_out_is_not_pushed(adapter, tmp_path, capsys):
    from peftcli.cli.app import run

    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "id_rsa").write_text("secret")
    (adapter / "more").symlink_to(tmp_path / "secrets")
    assert run(["push", str(adapter), "org/name", "--dry-run", "--json"]) == 0
    assert "id_rsa" not in capsys.readouterr().out


def test_json_steers_no_terminal_and_is_the_same_json():
    value = {"a\x9b31m": "\x1b[2J\x7f\u202e\u2066\ud800\u2028", "سلام": "👩‍🚀"}
    text = inert_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set(text) & set("\x1b\x9b\x7f\u202e\u2066\ud800\u2028")
    assert "سلام" in text
    assert "👩‍🚀" in text


def on_a_terminal(*arguments: Any) -> bytes:
    """What a terminal would be shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "peftcli", *map(str, arguments)])
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:
        pass
    os.waitpid(pid, 0)
    return shown


@pytest.mark.slow
def test_labels_and_rows_that_steer_are_harmless_on_a_terminal(tmp_path: Path) -> None:
    from tests.data.writers import write_jsonl
    from tests.tasks.animals import trained

    steering = "\x1b[31m\x9b2J\u202e"
    rows = [{"text": f"the {word}", "label": f"{steering}{word}"} for word in ("cat", "dog") * 8]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    run = trained(
        tmp_path,
        "single",
        data={"train": {"path": path}, "eval": {"path": path}},
        training={"num_train_epochs": 1},
    )
    for arguments in (
        ("train", tmp_path / "recipe.yaml", "--set", "training.overwrite_output_dir=true", "--json"),
        ("predict", "--adapter", run, "--input", path),
        ("predict", "--adapter", run, "--input", path, "--json"),
        ("eval", run),
    ):
        shown = on_a_terminal(*arguments).decode("utf-8", "replace")
        assert "cat" in shown or "accuracy" in shown
        # Rich, which draws the progress bar, has escapes of its own: none of these.
        assert not {"\x9b", "\u202e"} & set(shown)
        assert "\x1b[31m\\" not in shown
