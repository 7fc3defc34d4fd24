"""What a folder says about its adapter: from the lock, from adapter_config.json, or that it is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.errors import ModelError
from peftcli.run.folder import open_run
from peftcli.run.lock import Lock, write_lock


def folder_with(tmp_path: Path, config: dict[str, Any], lock: Lock | None = None) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if lock is not None:
        write_lock(tmp_path, lock)
    return tmp_path


def test_the_lock_says_everything(tmp_path: Path) -> None:
    recipe = {
        "base_model": "org/base",
        "base_model_id": "org/other",
        "revision": "main",
        "task_type": "CAUSAL_LM",
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "trust_remote_code": True,
        "quantization": {"load_in_4bit": True},
        "data": {"system_prompt": "be brief", "source_prefix": "Q: "},
    }
    lock = Lock(recipe, {"fingerprint": "a" * 40}, {"format": "chat"}, {}, "{{ messages }}")
    run = open_run(folder_with(tmp_path, {"base_model_name_or_path": "org/other"}, lock))
    assert run.base_model == "org/base"
    # The commit that was trained on, not what the branch has become since.
    assert run.revision == "a" * 40
    assert (run.dtype, run.attn_implementation, run.trust_remote_code) == ("bfloat16", "eager", True)
    assert run.quantization == {"load_in_4bit": True}
    assert (run.format, run.chat_template) == ("chat", "{{ messages }}")
    assert (run.system_prompt, run.source_prefix) == ("be brief", "Q: ")


def test_a_local_base_has_no_revision(tmp_path: Path) -> None:
    lock = Lock({"base_model": "/base"}, {"fingerprint": "sha256:" + "a" * 64}, {}, {})
    assert open_run(folder_with(tmp_path, {}, lock)).revision is None


def test_without_a_lock_the_adapters_own_config_names_the_base(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "org/base", "revision": "v2", "task_type": "CAUSAL_LM"}
    run = open_run(folder_with(tmp_path, config))
    assert (run.base_model, run.revision, run.task_type, run.format) == ("org/base", "v2", "CAUSAL_LM", None)
    assert not run.trust_remote_code


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "cannot be read as JSON"), ("[]", "holds no JSON object"), ("{}", "names no base model")],
)
def test_a_broken_config_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        open_run(tmp_path)


def test_a_folder_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with pytest.raises(ModelError, match=r"there is no folder .*demos'; did you mean '.*demo'\?"):
        open_run(tmp_path / "demos")


def test_a_folder_without_an_adapter_names_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no adapter_config.json; .*checkpoint-10'"):
        open_run(tmp_path)
