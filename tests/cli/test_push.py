"""`peftcli push`, run as a user runs it, against a Hub of ours that speaks the real one's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.peft.head_labels import LABELS_NAME
from peftcli.recipe.tasks import TASK_FILES
from peftcli.run.claim import clear
from peftcli.tasks.feature_extraction import _FILE as POOLING_NAME
from peftcli.tasks.question_answering import _FILE as ANSWERS_NAME
from tests.hub_server import READER, TOKEN, HubServer

BIG = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What training leaves, with all that must stay behind; what the files hold does not matter."""
    folder = tmp_path / "run"
    (folder / "checkpoint-4").mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'
    )
    (folder / "adapter_model.safetensors").write_bytes(BIG)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# سلام 👩‍🚀\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    for name in ("optimizer.pt", "metrics.jsonl", "training_args.bin", ".env", "checkpoint-4/optimizer.pt"):
        (folder / name).write_text("stays")
    return folder


UPLOADED = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
}


def push(
    tmp_path: Path,
    *arguments: object,
    url: str = "http://127.0.0.1:9",
    token: str | None = TOKEN,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {
        **clean,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token is not None else {}),
        **more,
    }
    return subprocess.run(
        [sys.executable, "-m", "peftcli", "push", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=120,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if not line.startswith(("not uploaded", "warning"))]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    for word in words:
        assert word in errors[0]


def test_what_was_pushed_comes_back_byte_for_byte_and_nothing_else_went_up(
    hub: HubServer, run_folder: Path, tmp_path: Path
) -> None:
    result = push(tmp_path, run_folder, "tester/roundtrip", "--message", "the first سلام", url=hub.url)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{hub.url}/tester/roundtrip\n"
    assert "not uploaded: .env, checkpoint-4, metrics.jsonl, optimizer.pt, training_args.bin" in result.stderr
    repository = hub.repositories["tester/roundtrip"]
    assert set(repository.branches["main"][-1][1]) == UPLOADED
    assert repository.messages == ["the first سلام"]
    assert not repository.private
    from huggingface_hub import hf_hub_download

    for name in UPLOADED:
        path = hf_hub_download(
            "tester/roundtrip", name, endpoint=hub.url, cache_dir=tmp_path / "cache", token=TOKEN
        )
        assert Path(path).read_bytes() == (run_folder / name).read_bytes()


def test_what_a_task_must_know_again_goes_up_too_and_a_new_run_takes_it_away(run_folder: Path) -> None:
    assert {LABELS_NAME, POOLING_NAME, ANSWERS_NAME} <= set(TASK_FILES)
    for name in TASK_FILES:
        (run_folder / name).write_text("{}")
    listed = json.loads(push(run_folder.parent, run_folder, "tester/labels", "--dry-run", "--json").stdout)
    assert {file["path"] for file in listed["files"]} == UPLOADED | {*TASK_FILES}
    clear(run_folder)
    assert not {path.name for path in run_folder.iterdir()} & {*TASK_FILES}


def test_weights_go_up_as_large_files_and_the_rest_within_the_commit(
    hub: HubServer, run_folder: Path, tmp_path: Path
) -> None:
    content = os.urandom(4096)
    (run_folder / "adapter_model.safetensors").write_bytes(content)
    push(tmp_path, run_folder, "tester/large", url=hub.url)
    assert content in hub.blobs.values()
    assert (run_folder / "README.md").read_bytes() not in hub.blobs.values()


def test_a_second_push_adds_a_commit(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    push(tmp_path, run_folder, "tester/twice", url=hub.url)
    (run_folder / "README.md").write_text("---\n---\nnew")
    result = push(tmp_path, run_folder, "tester/twice", url=hub.url)
    assert result.returncode == 0, result.stderr
    commits = hub.repositories["tester/twice"].branches["main"]
    assert len(commits) == 3
    assert commits[-1][1]["README.md"] == b"---\n---\nnew"


def test_json_names_the_commit_and_each_file(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    result = push(tmp_path, run_folder, "tester/json", "--private", "--revision", "v1", "--json", url=hub.url)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    repository = hub.repositories["tester/json"]
    assert repository.private
    assert answer["commit"] == repository.branches["v1"][-1][0]
    assert answer["url"] == f"{hub.url}/tester/json/tree/v1"
    assert {file["path"] for file in answer["files"]} == UPLOADED
    assert {"path": "adapter_model.safetensors", "size": len(BIG)} in answer["files"]
    assert repository.branches["main"][-1][1] == {}


def test_private_is_refused_where_the_repository_is_public(
    hub: HubServer, run_folder: Path, tmp_path: Path
) -> None:
    hub.add("tester/public")
    assert_one_line(push(tmp_path, run_folder, "tester/public", "--private", url=hub.url), 8, "is public")
    assert len(hub.repositories["tester/public"].branches["main"]) == 1


def test_a_dry_run_lists_files_and_asks_nobody(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    before = len(hub.requests)
    result = push(tmp_path, run_folder, "tester/dry", "--dry-run", url=hub.url, token=None)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[-1] for line in lines} == UPLOADED
    assert next(line for line in lines if "safetensors" in line).split()[0] == f"{len(BIG):,}"
    assert len(hub.requests) == before


def test_without_a_token_one_line_says_to_set_one(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    before = len(hub.requests)
    assert_one_line(
        push(tmp_path, run_folder, "tester/x", url=hub.url, token=None), 8, "no token", "HF_TOKEN"
    )
    assert len(hub.requests) == before


WRONG = "hf_wrongTokenThatMustNotBeShown"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (WRONG, "does not accept the token"),
        (READER, "may not write"),
        # The HTTP library's complaint about such a header would repeat it.
        ("hf_with break", "characters"),
        ("hf_مفتاح", "characters"),
    ],
)
def test_a_token_that_does_not_serve_is_named_as_the_cause_and_never_shown(
    hub: HubServer,
    run_folder: Path,
    tmp_path: Path,
    token: str,
    words: str,
) -> None:
    result = push(tmp_path, run_folder, "tester/refused", url=hub.url, token=token)
    assert_one_line(result, 8, words)
    assert token not in result.stderr
    debugged = push(tmp_path, run_folder, "tester/refused", "--debug", url=hub.url, token=token)
    assert "Traceback" in debugged.stderr
    assert token not in debugged.stdout + debugged.stderr
    assert "tester/refused" not in hub.repositories


@pytest.mark.parametrize("debug", [(), ("--debug",)])
@pytest.mark.parametrize("step", ["/api/repos/create", "/preupload/main", "/commit/main", "/objects/batch"])
def test_a_token_that_the_server_repeats_is_not_shown(
    hub: HubServer, run_folder: Path, tmp_path: Path, step: str, debug: tuple[str, ...]
) -> None:
    hub.fail_next[step] = 400
    result = push(tmp_path, run_folder, "tester/repeats", *debug, url=hub.url)
    assert result.returncode == 8
    assert "[token]" in result.stderr
    assert TOKEN not in result.stdout + result.stderr


def test_a_server_that_is_down_is_said_in_one_line(run_folder: Path, tmp_path: Path) -> None:
    assert_one_line(push(tmp_path, run_folder, "tester/x"), 8, "could not be reached")


def test_offline_mode_is_said_in_one_line(run_folder: Path, tmp_path: Path) -> None:
    assert_one_line(push(tmp_path, run_folder, "tester/x", HF_HUB_OFFLINE="1"), 8, "could not be reached")


@pytest.mark.parametrize("name", ["a/b/c", "bad name", "-x/y", "org/", "../up", "org/name.git"])
def test_a_name_that_is_not_valid_is_refused_before_any_request(
    hub: HubServer, run_folder: Path, tmp_path: Path, name: str
) -> None:
    before = len(hub.requests)
    assert_one_line(push(tmp_path, "--", run_folder, name, url=hub.url), 8, repr(name), "ORG/NAME")
    assert len(hub.requests) == before


def test_a_card_that_the_hub_refuses_is_quoted_with_its_reason(
    hub: HubServer, run_folder: Path, tmp_path: Path
) -> None:
    (run_folder / "README.md").write_text("---\nbase_model: /home/me/base\n---\n")
    result = push(tmp_path, run_folder, "tester/card", url=hub.url)
    assert_one_line(result, 8, "README.md", "must be the id of a repository")


def test_a_card_without_metadata_is_warned_of(hub: HubServer, run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "README.md").write_text("bare")
    result = push(tmp_path, run_folder, "tester/bare", url=hub.url)
    assert result.returncode == 0
    assert "warning: Warnings while validating metadata in README.md: - empty" in result.stderr


def test_a_base_that_others_do_not_have_is_warned_of(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "package://llm/x.gguf"}')
    result = push(tmp_path, run_folder, "tester/x", "--dry-run")
    assert "warning: adapter_config.json names the base 'package://llm/x.gguf'" in result.stderr


def test_a_link_out_of_the_folder_is_refused(run_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (run_folder / "tokenizer.json").unlink()
    (run_folder / "tokenizer.json").symlink_to(secret)
    assert_one_line(push(tmp_path, run_folder, "tester/x", "--dry-run"), 4, "tokenizer.json", "link")


def test_a_folder_without_an_adapter_names_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (2, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    assert_one_line(push(tmp_path, tmp_path / "run", "tester/x"), 4, "adapter_config.json", "checkpoint-10")


def test_weights_as_a_pickle_are_refused(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "adapter_model.safetensors").rename(run_folder / "adapter_model.bin")
    assert_one_line(push(tmp_path, run_folder, "tester/x", "--dry-run"), 4, "pickle")
