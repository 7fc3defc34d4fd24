"""The command, watched, and an adapter to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from peftcli.cli.app import run
from tests.hostile.watch import watched
from tests.run.adapters import saved


@pytest.fixture(scope="session")
def good_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on a tiny base."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    return saved(
        tmp_path_factory.mktemp("good") / "adapter",
        base,
        base_model_name_or_path=str(tiny_base),
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj"],
    )


@pytest.fixture
def adapter(good_adapter: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(good_adapter, tmp_path / "adapter"))


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> Callable[..., str]:
    """Runs a command, watched, and gives the one line that it ends with; its status is what is said."""

    def command(status: int, *arguments: Any) -> str:
        capsys.readouterr()
        with watched(tmp_path):
            assert run([*map(str, arguments)]) == status, capsys.readouterr()
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert lines[-1].startswith("error: "), err
        assert "Traceback" not in err
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(err)
        return str(lines[-1])

    return command
