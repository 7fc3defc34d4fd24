"""Laws of the project as a whole: what is shipped, what costs nothing, what stands in the README."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def python(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    """This Python, in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **settings)


@pytest.mark.slow
def test_a_built_wheel_holds_the_recipes_and_lists_them(tmp_path: Path) -> None:
    build = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT))
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    assert install.returncode == 0, install.stderr
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = python("-c", "import peftcli; print(peftcli.__file__)", cwd=tmp_path, env=environment)
    assert where.stdout.startswith(str(site))
    listed = python("-m", "peftcli", "recipes", cwd=tmp_path, env=environment)
    assert listed.returncode == 0, listed.stderr
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert recipe.stem in listed.stdout
    printed = python("-m", "peftcli", "recipes", "quickstart", cwd=tmp_path, env=environment)
    assert printed.stdout == (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")


def test_importing_the_package_imports_neither_torch_nor_transformers_nor_peft() -> None:
    code = "import json, sys, peftcli; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(python("-c", code, cwd=ROOT).stdout))
    assert not loaded & {"torch", "transformers", "peft", "pydantic"}


def test_no_file_of_the_package_imports_peft() -> None:
    for path in (ROOT / "peftcli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "peft"], path


def test_every_registered_name_is_there_and_every_format_and_task_file_is_registered() -> None:
    from peftcli import registry
    from peftcli.recipe.schema import TaskName
    from peftcli.recipe.tasks import OPTIONS

    for table in (registry.METHODS, registry.ENGINES, registry.TASKS, registry.FORMATS):
        for name in table:
            assert registry.resolve(table, name, what="name") is not None
    assert registry.METHODS.keys() == registry.ENGINES.keys()
    assert registry.TASKS.keys() == OPTIONS.keys() == set(get_args(TaskName))
    registered = {reference.split(":")[0] for reference in registry.FORMATS.values()}
    files = {f"peftcli.data.formats.{path.stem}" for path in (ROOT / "peftcli/data/formats").glob("[!_]*.py")}
    assert files == registered
    folders = {path.parent.name for path in (ROOT / "peftcli/methods").glob("*/config.py")}
    assert folders == {reference.split(".")[2] for reference in registry.METHODS.values()}


def test_every_command_of_the_readme_is_one_that_exists_with_the_options_it_is_given() -> None:
    from typer.main import get_command

    from peftcli.cli.app import app

    group = get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("peftcli ")]
    lines += re.findall(r"`(peftcli [a-z][^`]*)`", README)
    (workflow,) = (yaml.safe_load(block) for block in blocks("yml"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    lines += [step.partition(" > ")[0] for step in steps if step.startswith("peftcli ")]
    assert len(lines) > 5
    for line in lines:
        _, name, *rest = shlex.split(line, comments=True)
        assert name in group.commands, line
        options = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line


def test_every_recipe_is_well_formed_and_the_readme_shows_one_of_them(tmp_path: Path) -> None:
    from peftcli.recipe.read import read_recipe

    for path in (ROOT / "recipes").glob("*.yaml"):
        read_recipe(path)
    shown = blocks("yaml")
    assert shown
    for text in shown:
        assert yaml.safe_load(text) == yaml.safe_load(
            (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
        )


def test_every_python_block_of_the_readme_runs() -> None:
    for block in blocks("python"):
        done = python("-c", block, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "trainable params" in done.stdout


def test_the_recipes_rows_are_what_their_script_writes_and_held_out_commands_are_not_trained() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_data", ROOT / "recipes" / "make_data.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, text in script.files().items():
        assert (ROOT / "recipes" / name).read_text(encoding="utf-8") == text
    drawn = {**script.portraits(), **script.pictures()}
    for name, content in {**script.recordings(), **drawn}.items():
        assert (ROOT / "recipes" / name).read_bytes() == content
    made = script.quickstart_rows()
    assert not {row["instruction"] for row in made["train"]} & {row["instruction"] for row in made["eval"]}


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_quickstart_teaches_what_the_base_cannot_do_and_prints_what_the_readme_shows(
    tmp_path: Path,
) -> None:
    from tests.quickstart import readme_transcript, transcript

    def shape(text: str) -> list[str]:
        return re.sub(r"[\d,.]+(e[+-]?\d+)?", "#", text).splitlines()

    printed = transcript(str(tmp_path / "run"))
    assert "exact match without the adapter: 0 of 40" in printed
    assert int(re.search(r"exact match with the adapter: (\d+) of 40", printed)[1]) >= 38
    assert shape(printed) == shape(readme_transcript())
