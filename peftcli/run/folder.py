"""What a run's folder says about the adapter in it: the base to load, and how its training rows were written.

A folder that peftcli wrote has recipe.lock.yaml, which says everything. Any other folder of PEFT's two files
says less, in adapter_config.json: there the base's name is all there is, and prompts are chats where the
tokenizer has a chat template.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.adapters.checks import place, shown
from peftcli.adapters.config import CONFIG_NAME, TaskType, read_json
from peftcli.errors import ModelError, nearest
from peftcli.run.lock import LOCK_NAME, Lock, read_lock

if TYPE_CHECKING:
    from peftcli.models.load import Base

TASK_TYPES = list(TaskType)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An adapter's folder, read. `format` is None where nothing says how the training rows were written.

    `task` holds the options of the task_type, and `columns` are the renames that these rows had (format's column:
    file's column).
    """

    folder: Path
    base_model: str
    revision: str | None
    task_type: str | None
    task: dict[str, Any]
    dtype: str
    attn_implementation: str | None
    quantization: dict[str, Any] | None
    trust_remote_code: bool
    format: str | None
    chat_template: str | None
    system_prompt: str | None
    source_prefix: str | None
    columns: dict[str, str]
    base_fingerprint: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer, which is then the one to use."""
        return (self.folder / "tokenizer.json").is_file() or (self.folder / "tokenizer_config.json").is_file()

    @property
    def has_processor(self) -> bool:
        """Whether the folder holds what turns inputs into tensors, of whatever kind."""
        names = ("preprocessor_config.json", "processor_config.json")
        return self.has_tokenizer or any((self.folder / name).is_file() for name in names)


def open_run(folder: Path) -> RunFolder:
    """Read a run's folder, or an adapter's folder from elsewhere.

    Raises:
        ModelError: it holds no adapter, or its files cannot be read.
    """
    require_adapter(folder)
    config = read_json(folder / CONFIG_NAME)
    lock = read_lock(folder)
    return _from_config(folder, config) if lock is None else _from_lock(folder, lock, config)


def refuse_unread_code(run: RunFolder, *, trust_remote_code: bool) -> None:
    """Refuses to run a base's own code because a folder says so, which may be a stranger's.

    Raises:
        ModelError: the lock trusts the code, and who runs the command has not said so.
    """
    if run.trust_remote_code and not trust_remote_code:
        raise ModelError(
            f"runs the Python code that {run.base_model!r} brings; read that code, then say --trust-remote-code",
            where=str(run.folder / LOCK_NAME),
        )


def warn_of_another_base(run: RunFolder, base: Base, say: Callable[[str], object]) -> None:
    """Says where the base that was found is not the one that the adapter was trained on."""
    if run.base_fingerprint not in {None, base.fingerprint}:
        say(f"warning: {base.name} is not what the adapter was trained on: its content has changed since")


def require_adapter(folder: Path) -> None:
    """Refuses what is no adapter's folder, saying what it is instead.

    Raises:
        ModelError: always then.
    """
    if (folder / CONFIG_NAME).is_file():
        return
    if folder.is_file():
        raise ModelError(f"{str(folder)!r} is a file; name the folder that it is in: {str(folder.parent)!r}")
    if not folder.is_dir():
        siblings = (entry.name for entry in folder.parent.iterdir()) if folder.parent.is_dir() else ()
        close = nearest(folder.name, siblings, limit=1)
        hint = f"; did you mean {str(folder.parent / close[0])!r}?" if close else ""
        raise ModelError(f"there is no folder {str(folder)!r}{hint}")
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{CONFIG_NAME}")]
    if whole:
        last = max(whole, key=lambda path: int("0" + re.sub(r"\D", "", path.name)))
        hint = f"its last checkpoint does: name {str(last)!r}"
    else:
        hint = "name a folder that `peftcli train` or PEFT wrote"
    raise ModelError(f"{str(folder)!r} has no {CONFIG_NAME}; {hint}")


def _from_config(folder: Path, config: dict[str, Any]) -> RunFolder:
    base_model = config.get("base_model_name_or_path")
    if not base_model or not isinstance(base_model, str):
        raise ModelError(
            "names no base model; set base_model_name_or_path in it", where=str(folder / CONFIG_NAME)
        )
    task_type = config.get("task_type")
    if task_type is not None and (not isinstance(task_type, str) or task_type not in TASK_TYPES):
        raise ModelError(
            f"task_type: {shown(task_type)} is no task type of PEFT's", where=str(folder / CONFIG_NAME)
        )
    for name in ("base_model_name_or_path", "revision"):
        if problem := place(config.get(name)):
            raise ModelError(f"{name}: {problem}", where=str(folder / CONFIG_NAME))
    return RunFolder(
        folder=folder,
        base_model=base_model,
        revision=config.get("revision"),
        task_type=config.get("task_type"),
        task={},
        dtype="auto",
        attn_implementation=None,
        quantization=None,
        trust_remote_code=False,
        format=None,
        chat_template=None,
        system_prompt=None,
        source_prefix=None,
        columns={},
        base_fingerprint=None,
    )


def _from_lock(folder: Path, lock: Lock, config: dict[str, Any]) -> RunFolder:
    recipe, data = lock.recipe, lock.recipe.get("data") or {}
    if "base_model" not in recipe:
        raise ModelError("names no base_model; put the original back", where=str(folder / LOCK_NAME))
    fingerprint = lock.base.get("fingerprint")
    # A base from the Hub is fetched at the very commit that was trained on.
    pinned = fingerprint if fingerprint and _COMMIT.fullmatch(fingerprint) else recipe.get("revision")
    # A relative path is one from where the run was started.
    path = lock.base.get("path")
    named = recipe["base_model"]
    return RunFolder(
        folder=folder,
        base_model=path if path and not Path(named).exists() and _is_relative(named) else named,
        revision=pinned,
        task_type=recipe.get("task_type", config.get("task_type")),
        task=recipe.get("task") or {},
        dtype=recipe.get("dtype", "auto"),
        attn_implementation=recipe.get("attn_implementation"),
        quantization=recipe.get("quantization"),
        trust_remote_code=recipe.get("trust_remote_code", False),
        format=lock.data.get("format"),
        chat_template=_template(folder, lock),
        system_prompt=data.get("system_prompt"),
        source_prefix=data.get("source_prefix"),
        columns=_columns(data),
        base_fingerprint=fingerprint,
    )


def _template(folder: Path, lock: Lock) -> str | None:
    """The lock's chat template; a file's name is none: the lock may be a stranger's, and the file anyone's."""
    template = lock.chat_template
    if template is None or (isinstance(template, str) and ("{%" in template or "{{" in template)):
        return template
    raise ModelError(
        "chat_template: is no Jinja template; put the original back", where=str(folder / LOCK_NAME)
    )


def _is_relative(path: str) -> bool:
    return not Path(path).expanduser().is_absolute()


def _columns(data: dict[str, Any]) -> dict[str, str]:
    """The renames of the first training source, whose format is the one that prompts are written in."""
    sources = data.get("train") or [{}]
    first = sources[0] if isinstance(sources, list) else sources
    return dict(first.get("columns") or {})
