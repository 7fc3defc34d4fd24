"""`peftcli push`: a run's folder to a model repository of the Hub, in one commit.

What goes up is on a list, by name: whatever else lies in the folder (checkpoints with optimizer state, logs,
notes) stays where it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peftcli.adapters.config import CONFIG_NAME, WEIGHTS_NAME
from peftcli.errors import AdapterError
from peftcli.hub import check_name
from peftcli.hub import upload as upload_files
from peftcli.recipe.tasks import TASK_FILES
from peftcli.run.answers import FileAnswer, PushAnswer
from peftcli.run.folder import open_run
from peftcli.run.lock import LOCK_NAME

CARD_NAME = "README.md"

UPLOADED = (
    CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, LOCK_NAME,
    # The card shows it.
    "loss.svg",
    # The tokenizer, in the forms that Transformers saves.
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    # What prepares images and sound.
    "preprocessor_config.json", "processor_config.json",
    # What the task must know again: its labels, say.
    *TASK_FILES,
)  # fmt: skip

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Upload:
    """What is to go up, and what stays."""

    files: dict[str, Path]
    left: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Each file's size in bytes."""
        return {name: path.stat().st_size for name, path in self.files.items()}


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it went. `commit` is None where nothing was sent (`--dry-run`)."""

    repo_id: str
    url: str | None
    commit: str | None
    sizes: dict[str, int]

    def as_dict(self) -> PushAnswer:
        """For `--json`."""
        files: list[FileAnswer] = [{"path": name, "size": size} for name, size in self.sizes.items()]
        return {"repo_id": self.repo_id, "url": self.url, "commit": self.commit, "files": files}


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    say: Say,
) -> Pushed:
    """Upload an adapter and its card; the repository and the branch are made where they do not exist.

    Args:
        folder: a run's folder, or any folder with PEFT's two files.
        repo_id: `name`, or `organization/name`.
        private: make the repository private; one that is public already is refused.
        revision: the branch; default: main.
        message: the commit's.
        dry_run: only say what would go up, without the network.
        say: gets what the user should know.

    Raises:
        ModelError: the folder holds no adapter that can be uploaded.
        HubError: the name or the token is wrong, or the Hub refused or could not be reached.
    """
    check_name(repo_id)
    upload = _choose(folder)
    _warn(folder, upload, say)
    if dry_run:
        return Pushed(repo_id, None, None, upload.sizes())
    with _bars_on_terminals_only(), _warnings_to(say):
        commit = upload_files(
            repo_id,
            upload.files,
            message=message or "Upload an adapter with peftcli",
            private=private,
            revision=revision,
        )
    page = commit.commit_url.partition("/commit/")[0]
    full_name = "/".join(page.split("/")[-2:])
    return Pushed(full_name, page + (f"/tree/{revision}" if revision else ""), commit.oid, upload.sizes())


def _choose(folder: Path) -> Upload:
    """The files of the list that are there; a link out of the folder is refused: it may lead anywhere."""
    open_run(folder)
    files = {name: folder / name for name in UPLOADED if (folder / name).is_file()}
    for name, path in files.items():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise AdapterError("is a link out of the folder; put the file there", where=str(folder / name))
    if WEIGHTS_NAME not in files:
        pickle = " (adapter_model.bin is a pickle, which can run code when read)"
        hint = pickle if (folder / "adapter_model.bin").is_file() else ""
        raise AdapterError(f"{str(folder)!r} has no {WEIGHTS_NAME}{hint}; nothing can be pushed from it")
    left = sorted(entry.name for entry in folder.iterdir() if entry.name not in files)
    return Upload(files, tuple(left))


def _warn(folder: Path, upload: Upload, say: Say) -> None:
    if upload.left:
        say(f"not uploaded: {', '.join(upload.left)}")
    if CARD_NAME not in upload.files:
        say(f"warning: {folder} has no {CARD_NAME}, so the repository will have no model card")
    base = _named_base(folder)
    if base.startswith(("package://", "/", ".", "~")) or Path(base).exists():
        say(
            f"warning: {CONFIG_NAME} names the base {base!r}, which others do not have; "
            "set base_model_id in the recipe to its name on the Hub"
        )


def _named_base(folder: Path) -> str:
    import json

    return str(
        json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    )


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _warnings_to(say: Say) -> Iterator[None]:
    """The Hub's remarks on a model card reach Python as warnings; here each becomes a line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        say(f"warning: {' '.join(str(warning.message).split())}")
