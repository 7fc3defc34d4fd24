"""The application: help, usage errors, and how every error ends."""

import os
import re
import subprocess
import sys
import time

import pytest

from peftcli.cli.app import COMMANDS, run
from peftcli.cli.terminal import printable

NAMES = [command.__name__.removesuffix("_") for command in COMMANDS]
LIGHT = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in NAMES),
    ["check", "recipe.yaml"],
    ["schema"],
    ["recipes"],
    ["recipes", "quickstart"],
    ["init"],
]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "numpy", "pyarrow"}


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_what_needs_no_model_imports_no_torch(peftcli, recipe, arguments):
    done = peftcli(*arguments, check=0, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "peftcli.cli.app" in imported
    assert not imported & HEAVY


def test_importing_the_package_imports_no_torch():
    code = "import sys, peftcli.recipe.read; sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_help_costs_less_than_a_third_of_importing_torch(peftcli):
    def fastest(run_once):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run_once()
            times.append(time.perf_counter() - start)
        return min(times)

    torch = fastest(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    assert fastest(lambda: peftcli("--help", check=0)) < torch / 3


def test_help_lists_every_command_with_a_line(peftcli):
    text = peftcli("--help", check=0).stdout
    for name in NAMES:
        assert re.search(rf"^  {name} +[A-Z].*\.$", text, re.MULTILINE), name


def test_without_a_command_the_help_goes_to_standard_error(peftcli):
    done = peftcli(check=2)
    assert done.stdout == ""
    assert "Commands:" in done.stderr


def test_the_version_is_that_of_the_project(peftcli):
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert peftcli("--version", check=0).stdout.strip() == project["version"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["chek", "x"],
            "error: no such command 'chek'. Did you mean 'check', 'schema'?; see `peftcli --help`",
        ),
        (["check"], "error: missing argument 'RECIPE'; see `peftcli check --help`"),
        (["check", "recipe.yaml", "--jsn"], "error: no such option: --jsn; did you mean '--json'?"),
        (
            ["check", "recipe.yaml", "--frobnicate"],
            "error: no such option: --frobnicate; see `peftcli check --help`",
        ),
        (
            ["check", "recipe.yaml", "more"],
            "error: got unexpected extra argument(s) (more); see `peftcli check --help`",
        ),
        (
            ["check", "recipe.yaml", "--set"],
            "error: option '--set' requires an argument",
        ),
        (["check", "recpie.yaml"], "error: recpie.yaml: there is no such file; did you mean 'recipe.yaml'?"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(peftcli, recipe, arguments, line):
    done = peftcli(*arguments, check=2)
    assert done.stdout == ""
    assert done.stderr == f"{line}\n"


def test_an_error_shows_its_traceback_only_with_debug(peftcli, recipe):
    arguments = ("check", "recipe.yaml", "--set", "training.lerning_rate=1")
    quiet = peftcli(*arguments, check=2)
    assert quiet.stderr.count("\n") == 1
    for loud in (peftcli("--debug", *arguments, check=2), peftcli(*arguments, "--debug", check=2)):
        assert "Traceback" in loud.stderr
        assert loud.stderr.endswith(quiet.stderr)


def test_a_bug_is_one_line_that_says_how_to_see_more():
    broken = "from peftcli.cli import app; del app.PeftcliError"
    code = f"import sys; {broken}; sys.argv = ['peftcli', 'check', 'x']; app.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected NameError: ")
    assert done.stderr.count("\n") == 1
    assert "--debug" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(peftcli):
    read, write = os.pipe()
    os.close(read)
    done = peftcli("schema", stdout=write, stderr=subprocess.PIPE, capture_output=False)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_an_interrupt_is_status_130(peftcli, tmp_path):
    import signal

    os.mkfifo(tmp_path / "endless.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "peftcli", "check", "endless.yaml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.fspath(__import__("pathlib").Path(__file__).parents[2])},
    )
    # Opening a pipe for writing waits for its reader: from here on the command stands in its reading.
    with (tmp_path / "endless.yaml").open("w"):
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "interrupted\n"
    assert process.returncode == 130


def test_control_characters_in_what_a_user_typed_never_reach_the_terminal(peftcli):
    done = peftcli("check", "a\x1b[31m\n\u202eb.yaml", check=2)
    assert done.stderr.startswith("error: a\\x1b[31m\\n\\u202eb.yaml: there is no such file")


def test_any_script_reaches_the_terminal_unharmed():
    for text in ("شلون الطقس؟", "👩‍👩‍👧‍👦", "e\u0301", "한국어", "नमस्ते"):
        assert printable(text) == text


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_output_is_utf_8_whatever_the_locale(peftcli, recipe, locale):
    recipe.write_text(recipe.read_text().replace("org/model", "شلون"), encoding="utf-8")
    environment = {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = peftcli("check", "recipe.yaml", "--json", environment=environment, check=0)
    assert "شلون" in done.stdout
    assert "شلون" in done.stderr


def test_a_bare_resume_needs_no_value():
    from peftcli.cli.app import _with_bare_resume

    assert _with_bare_resume(["train", "r.yaml", "--resume"]) == ["train", "r.yaml", "--resume="]
    assert _with_bare_resume(["train", "--resume", "r.yaml"]) == ["train", "--resume=", "r.yaml"]
    assert _with_bare_resume(["train", "r.yaml", "--resume", "--json"]) == [
        "train",
        "r.yaml",
        "--resume=",
        "--json",
    ]
    assert _with_bare_resume(["train", "r.yaml", "--resume", "out/c-3"]) == [
        "train",
        "r.yaml",
        "--resume",
        "out/c-3",
    ]


def test_a_command_line_can_be_run_from_python(capsys):
    assert run(["--version"]) == 0
    assert run(["check", "/nowhere/x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: /nowhere/x.yaml: there is no such file")
