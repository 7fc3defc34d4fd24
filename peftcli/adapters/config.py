"""The part of adapter_config.json that every method has, and how any such file is read and written.

Names and meaning are PEFT's, so that its files and ours are the same. Unlike PEFT's, a config is checked when
it is made (all problems at once), is written in sorted order, and reading one never drops a field that says
something.
No torch here: recipes are checked without it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

from peftcli.adapters import checks
from peftcli.errors import AdapterConfigError, AdapterError, did_you_mean, nearest
from peftcli.files import write_text
from peftcli.hub import HubOptions, fetch, upload
from peftcli.registry import METHODS, resolve

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# Far above what any adapter's config has.
MOST_CONFIG_BYTES = 8 * 2**20
# What stands before the base's names in an adapter's file.
PREFIX = "base_model.model."


class TaskType(StrEnum):
    """What the adapted model is for: the six that PEFT names."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105  (a task, not a password)
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(StrEnum):
    """Every method that PEFT 0.21 names, so that one we do not have is called unsupported and not unknown."""

    PROMPT_TUNING = "PROMPT_TUNING"
    MULTITASK_PROMPT_TUNING = "MULTITASK_PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    LORA = "LORA"
    ADALORA = "ADALORA"
    ADAMSS = "ADAMSS"
    BOFT = "BOFT"
    ADAPTION_PROMPT = "ADAPTION_PROMPT"
    IA3 = "IA3"
    BEFT = "BEFT"
    LILY = "LILY"
    LOHA = "LOHA"
    LOKR = "LOKR"
    OFT = "OFT"
    POLY = "POLY"
    LN_TUNING = "LN_TUNING"
    VERA = "VERA"
    FROD = "FROD"
    PVERA = "PVERA"
    FOURIERFT = "FOURIERFT"
    GLORA = "GLORA"
    XLORA = "XLORA"
    HRA = "HRA"
    VBLORA = "VBLORA"
    UNILORA = "UNILORA"
    CPT = "CPT"
    MISS = "MISS"
    RANDLORA = "RANDLORA"
    ROAD = "ROAD"
    TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
    HIRA = "HIRA"
    SHIRA = "SHIRA"
    C3A = "C3A"
    WAVEFT = "WAVEFT"
    OSF = "OSF"
    DELORA = "DELORA"
    GRALORA = "GRALORA"
    CARTRIDGE = "CARTRIDGE"
    TINYLORA = "TINYLORA"
    PSOFT = "PSOFT"
    PEANUT = "PEANUT"
    SHADOW = "SHADOW"
    SUPERTUNING = "SUPERTUNING"
    DEFT = "DEFT"


@dataclass
class PeftConfig:
    """What adapter_config.json says whatever the method.

    Raises:
        AdapterConfigError: with every field that is wrong or not ours, when one is made.
    """

    task_type: TaskType | None = field(default=None, metadata={"help": "what the adapted model is for"})
    peft_type: PeftType | None = field(default=None, metadata={"help": "the method"})
    auto_mapping: dict[str, str] | None = field(
        default=None,
        metadata={"help": "the base model's class and module, for a task without a class of its own"},
    )
    peft_version: str | None = field(
        default=None, metadata={"help": "the version of PEFT that wrote the file"}
    )
    base_model_name_or_path: str | None = field(default=None, metadata={"help": "the model that was adapted"})
    revision: str | None = field(default=None, metadata={"help": "the Hub revision of the base model"})
    inference_mode: bool = field(
        default=False, metadata={"help": "load the adapter frozen: its weights take no gradient"}
    )

    # The method that a config class is of; None for the part that all have.
    METHOD: ClassVar[PeftType | None] = None
    # Methods that put trained vectors before the model's inputs, and adapt no layer.
    is_prompt_learning: ClassVar[bool] = False
    # PEFT's fields that we do not have yet, each with the value that PEFT gives it when it is not used.
    DEFERRED: ClassVar[Mapping[str, Any]] = {}
    CHECKS: ClassVar[Mapping[str, checks.Check]] = {
        "auto_mapping": lambda value: "" if value is None or isinstance(value, dict) else "must be a mapping",
        "peft_version": checks.text,
        "base_model_name_or_path": checks.place,
        "revision": checks.place,
        "inference_mode": checks.boolean,
    }

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Refuses fields by name before Python does, together with what is wrong with the others."""
        problems = cls._name_problems(values)
        if problems:
            known = {item.name for item in fields(cls)}
            try:
                cls(*args, **{name: value for name, value in values.items() if name in known})
            except AdapterConfigError as error:
                problems += error.fields
            raise AdapterConfigError(problems)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        problems = [(name, check(getattr(self, name))) for name, check in self.CHECKS.items()]
        problems.append(("task_type", self._task_problem()))
        problems += self.conflicts()
        problems = [(name, message) for name, message in problems if message]
        if problems:
            raise AdapterConfigError(problems)
        self.task_type = None if self.task_type is None else TaskType(self.task_type)
        if self.METHOD is not None:
            self.peft_type = self.METHOD

    @property
    def changes_base(self) -> bool:
        """Whether a new adapter starts by taking something out of the base: alone, it is then none for the base."""
        return False

    @property
    def never_merges(self) -> str:
        """Why an adapter with this config is no change of its base's weights, or nothing where it is one."""
        return "stands before the model's input" if self.is_prompt_learning else ""

    @property
    def starts_from_data(self) -> bool:
        """Whether the method must see rows before a new adapter is made: see `Method.prepare`."""
        return False

    def plain_start(self) -> Self:
        """The same adapter as its method starts it where it sees neither rows nor the base's weights."""
        return self

    @property
    def reads_inputs(self) -> bool:
        """Whether its layers act by what the model is given: see `Method.during`."""
        return False

    @property
    def trains_tokens(self) -> bool:
        """Whether it trains some rows of the embeddings, so that its file need not hold them whole."""
        return False

    def conflicts(self) -> list[tuple[str, str]]:
        """What is wrong between fields, as (field, message); the message may be empty."""
        if self.METHOD is None or self.peft_type in (None, self.METHOD):
            return []
        return [
            ("peft_type", f"{checks.shown(self.peft_type)} is not {self.METHOD}")
        ]  # a file of another method

    @classmethod
    def remark(cls, values: Mapping[str, Any]) -> str:  # noqa: ARG003  (most methods have none)
        """What whoever reads a file with this content should know, or nothing."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The content of adapter_config.json: plain JSON values, in sorted order."""
        return {
            item.name: _plain(getattr(self, item.name))
            for item in sorted(fields(self), key=lambda item: item.name)
            # PEFT fills in its own version where none is given; ours would be read as one of PEFT's.
            if item.name != "peft_version" or self.peft_version is not None
        }

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes adapter_config.json into the folder, whole or not at all."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_NAME, self._json())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Puts adapter_config.json into a model repository of the Hub.

        Raises:
            HubError: where the Hub refuses, or cannot be reached.
        """
        return upload(
            repo_id,
            {CONFIG_NAME: self._json().encode()},
            message=commit_message or "Upload config",
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        **hub: Unpack[HubOptions],
    ) -> PeftConfig:
        """The config in a local folder or a repository of the Hub, as its method's own class.

        Raises:
            AdapterError: where there is no adapter_config.json, or one that is not JSON.
            AdapterConfigError: where a field is wrong or not supported.
            HubError: where the Hub cannot be reached, or asks for a token.
        """
        path = fetch(pretrained_model_name_or_path, CONFIG_NAME, subfolder, **hub)
        config = from_dict(read_json(path), where=str(path))
        if not isinstance(config, cls):
            raise AdapterError(f"is a config of {config.peft_type}, not a {cls.__name__}", where=str(path))
        return config

    def _json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def _name_problems(cls, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        known = [item.name for item in fields(cls)]
        problems = []
        for name in values:
            if name in cls.DEFERRED:
                problems.append((name, "is not supported yet; remove it"))
            elif name not in known:
                problems.append((name, f"is not a field of {cls.__name__}; {did_you_mean(name, known)}"))
        return problems

    def _task_problem(self) -> str:
        choices = list(TaskType)
        if self.task_type is None or self.task_type in choices:
            return ""
        return (
            f"{checks.shown(self.task_type)} is not a task type; {did_you_mean(str(self.task_type), choices)}"
        )


def reads_inputs(model: Any) -> bool:
    """Whether an adapter on the model acts by what that is given."""
    return any(config.reads_inputs for config in getattr(model, "peft_config", {}).values())


def from_dict(values: Mapping[str, Any], *, where: str = "") -> PeftConfig:
    """A config from the content of an adapter_config.json, which PEFT or a newer PEFT may have written.

    Fields that we do not have are accepted where they say nothing: at PEFT's default, or, for a field that
    PEFT 0.21 does not know either, when null, false or empty (said in a warning).

    Raises:
        AdapterConfigError: where a field is wrong or not supported; all problems at once.
    """
    peft_type = values.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in METHODS:
        raise AdapterConfigError([("peft_type", _method_problem(peft_type))], where=where)
    config: type[PeftConfig] = resolve(METHODS, peft_type, what="peft_type")
    known = {item.name for item in fields(config)}
    kept = {name: value for name, value in values.items() if name in known}
    problems: list[tuple[str, str]] = []
    if remark := config.remark(values):
        warnings.warn(f"{where or CONFIG_NAME}: {remark}", stacklevel=2)
    for name, value in values.items():
        if name in known or (name in config.DEFERRED and value == config.DEFERRED[name]):
            continue
        if name in config.DEFERRED:
            problems.append((name, f"is not supported yet, and is set to {checks.shown(value)}"))
        elif value is None or value is False or value in ("", [], {}):
            warnings.warn(
                f"{where or CONFIG_NAME}: the unknown field {name!r} is unset; it is ignored", stacklevel=2
            )
        else:
            problems.append((name, f"is a field that this version does not know{_resembles(name, known)}"))
    return _made(config, kept, problems, where)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        AdapterError: where there is no such file, or it holds no JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_CONFIG_BYTES + 1)
        content = json.loads(text) if len(text) <= MOST_CONFIG_BYTES else None
    except FileNotFoundError:
        raise AdapterError(
            f"there is no {path.name} here; name a folder with an adapter", where=str(path.parent)
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"cannot be read as JSON: {error}", where=str(path)) from error
    if len(text) > MOST_CONFIG_BYTES:
        size = path.stat().st_size / 1e6
        raise AdapterError(f"is {size:.0f} MB large, which no adapter's config is", where=str(path))
    if not isinstance(content, dict):
        raise AdapterError("holds no JSON object; an adapter's config is one", where=str(path))
    return content


def _made(
    config: type[PeftConfig], values: dict[str, Any], problems: list[tuple[str, str]], where: str
) -> PeftConfig:
    try:
        made = config(**values)
    except AdapterConfigError as error:
        raise AdapterConfigError([*problems, *error.fields], where=where) from None
    if problems:
        raise AdapterConfigError(problems, where=where)
    return made


def _method_problem(peft_type: Any) -> str:
    supported = f"supported: {', '.join(METHODS)}"
    if peft_type is None:
        return f"is missing; {supported}"
    known = isinstance(peft_type, str) and peft_type in list(PeftType)
    return f"{checks.shown(peft_type)} is {'not supported yet' if known else 'not a method'}; {supported}"


def _resembles(name: str, known: set[str]) -> str:
    close = nearest(name, known, limit=1)
    return f" (the nearest that it knows is {close[0]!r})" if close else "; a newer PEFT may have written it"


def _plain(value: Any) -> Any:
    """JSON's own types; sets, which have no order, become sorted lists, and so do mappings' keys."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
