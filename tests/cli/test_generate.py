"""`peftcli generate` as a user runs it: flags, standard input and output, files, a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, set_seed

from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.run.lock import Lock, write_lock


@pytest.fixture(scope="session")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat adapter that is a single folder, as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    set_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    recipe = {"base_model": str(tiny_base), "task_type": "CAUSAL_LM", "data": {}}
    write_lock(folder, Lock(recipe, {"name": str(tiny_base)}, {"format": "chat"}, {}, None))
    return folder


def generate(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "peftcli", "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=stdin, timeout=120)


SHORT = ("--temperature", 0, "--max-new-tokens", 8)


def refused(result: subprocess.CompletedProcess[bytes], status: int, words: str) -> None:
    stderr = result.stderr.decode()
    assert result.returncode == status, stderr
    assert result.stdout == b""
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert words in stderr


@pytest.mark.slow
def test_a_prompt_is_the_same_from_a_flag_and_from_standard_input(adapter: Path) -> None:
    by_flag = generate("--adapter", adapter, *SHORT, "--prompt", "سلام 👩‍🚀")
    by_pipe = generate("--adapter", adapter, *SHORT, stdin="سلام 👩‍🚀\n".encode())
    assert by_flag.returncode == 0, by_flag.stderr.decode()
    assert by_flag.stdout == by_pipe.stdout
    assert by_flag.stdout.endswith(b"\n")
    # Nothing but what a user can act on is said: no progress bar, no warning of a library.
    assert by_flag.stderr in {b"", b"(cut after 8 tokens)\n"}


@pytest.mark.slow
def test_several_prompts_are_introduced_and_json_holds_them_all(adapter: Path) -> None:
    plain = generate("--adapter", adapter, *SHORT, "--prompt", "one", "--prompt", "two")
    assert "[1/2] one" in plain.stderr.decode()
    assert "[2/2] two" in plain.stderr.decode()
    answers = json.loads(
        generate("--adapter", adapter, *SHORT, "--prompt", "one", "--prompt", "two", "--json").stdout
    )
    assert [answer["prompt"] for answer in answers] == ["one", "two"]
    assert plain.stdout.decode() == "".join(answer["generated_text"] + "\n" for answer in answers)


@pytest.mark.slow
def test_rows_go_in_and_come_out_with_what_else_they_hold(adapter: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "یک", "id": 7},
        {"messages": [{"role": "user", "content": "two three"}], "note": "نگه‌دار"},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = generate("--adapter", adapter, *SHORT, "--input", source, "--output", target)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == b""
    text = target.read_text(encoding="utf-8")
    assert "نگه‌دار" in text
    answered = [json.loads(line) for line in text.splitlines()]
    assert [{key: got[key] for key in row} for row, got in zip(rows, answered, strict=True)] == rows
    assert all(got["finish_reason"] in {"stop", "length"} for got in answered)
    printed = generate("--adapter", adapter, *SHORT, "--input", source)
    assert printed.stdout.decode() == text
    single = generate("--adapter", adapter, *SHORT, "--prompt", "یک", "--json")
    assert json.loads(single.stdout)[0]["generated_text"] == answered[0]["generated_text"]


@pytest.mark.slow
def test_a_bad_row_leaves_no_output(adapter: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    target.write_text("as it was")
    refused(
        generate("--adapter", adapter, "--input", source, "--output", target),
        3,
        "in.jsonl:2: the prompt is empty",
    )
    assert target.read_text() == "as it was"


@pytest.mark.slow
def test_a_conversation_goes_through_a_pipe(adapter: Path) -> None:
    result = generate("--adapter", adapter, *SHORT, "--chat", stdin="hi\nسلام\n/exit\nnever\n".encode())
    assert result.returncode == 0, result.stderr.decode()
    first = generate("--adapter", adapter, *SHORT, "--prompt", "hi")
    assert result.stdout.startswith(first.stdout)
    assert len(result.stdout) > len(first.stdout)


@pytest.mark.slow
def test_the_bare_base_answers_otherwise(adapter: Path) -> None:
    with_it = generate("--adapter", adapter, *SHORT, "--prompt", "hi")
    without = generate("--adapter", adapter, *SHORT, "--prompt", "hi", "--no-adapter")
    assert without.returncode == 0, without.stderr.decode()
    assert with_it.stdout != without.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "a", "--chat"), "--prompt and --chat do not go together"),
        (("--prompt", "a", "--input", "x.jsonl"), "--prompt and --input do not go together"),
        (("--output", "x.jsonl"), "--output needs --input"),
        (("--input", "x.jsonl", "--output", "no/such/x.jsonl"), "there is no folder 'no/such'"),
        (("--chat", "--raw"), "--chat does not go with --raw"),
        (("--prompt", "a", "--temperature", "-1"), "--temperature must be"),
        (("--prompt", "a", "--batch-size", "0"), "--batch-size"),
        (("--prompt", "a", "--temprature", "1"), "--temperature"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_loaded(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    refused(generate("--adapter", tmp_path, *arguments), 2, words)


@pytest.mark.parametrize(("stdin", "words"), [(b" \n", "prompt is empty"), (b"\xff\xfe", "not UTF-8")])
def test_standard_input_that_holds_no_prompt_is_refused(tmp_path: Path, stdin: bytes, words: str) -> None:
    refused(generate("--adapter", tmp_path, stdin=stdin), 3, words)


def test_a_missing_input_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refused(generate("--adapter", tmp_path, "--input", tmp_path / "no.jsonl"), 3, "no.jsonl: cannot be read")


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    refused(generate("--adapter", tmp_path, "--prompt", "a"), 4, "has no adapter_config.json")


def on_a_terminal(*arguments: object) -> tuple[int, bytes]:
    """The status and everything shown, with all three standard streams on one terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "peftcli", "generate", *map(str, arguments)])
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:
        # Linux reports the end of a terminal whose program has left as an error.
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_terminal_without_a_prompt_is_told_what_to_give(tmp_path: Path) -> None:
    status, shown = on_a_terminal("--adapter", tmp_path)
    assert status == 2
    assert b"no prompt; give --prompt TEXT" in shown


@pytest.mark.slow
def test_a_model_cannot_steer_the_terminal(adapter: Path) -> None:
    # A random model over bytes says every control character sooner or later.
    sampled = (
        "--adapter",
        adapter,
        "--prompt",
        "a",
        "--max-new-tokens",
        300,
        "--temperature",
        5,
        "--seed",
        3,
    )
    raw = generate(*sampled, "--raw").stdout
    assert any(byte < 9 for byte in raw)
    status, shown = on_a_terminal(*sampled, "--raw")
    assert status == 0
    assert not any(byte < 9 for byte in shown)
    assert b"\\x0" in shown


@pytest.mark.slow
def test_a_sampled_completion_repeats_with_its_seed(adapter: Path) -> None:
    sampled = ("--adapter", adapter, "--prompt", "a", "--temperature", 1, "--max-new-tokens", 20)
    first = generate(*sampled, "--seed", 5)
    assert first.stdout == generate(*sampled, "--seed", 5).stdout
    assert first.stdout != generate(*sampled, "--seed", 6).stdout
