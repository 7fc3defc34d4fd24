"""From an adapter alone to the whole model: its config says which base it is for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open

from peftcli.adapters.config import PeftConfig
from peftcli.errors import AdapterError, HubError
from peftcli.hub import HubOptions, fetch
from peftcli.models.load import resolve_base
from peftcli.peft.head_labels import head_options
from peftcli.peft.model import (
    BY_TASK,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)
from peftcli.peft.storage import PREFIX, WEIGHTS_NAME

# An adapter's config can name the base's class and module. Only modules of these packages are imported for it:
# importing a module runs its code.
IMPORT_ALLOWLIST = ("diffusers", "lerobot", "megatron-core", "transformers")
_TOKENIZER = "tokenizer_config.json"


class AutoPeftModel:
    """For adapters of tasks without a class of their own: their config names the base's class."""

    # The class of Transformers that loads the base.
    base_class: ClassVar[str] = ""
    peft_class: ClassVar[type[PeftModel]] = PeftModel
    # Whether the base has as many labels as the adapter's head.
    has_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        name = type(self).__name__
        raise OSError(f"{name} is not made itself; call {name}.from_pretrained(PATH_OR_REPOSITORY)")

    @classmethod
    def from_pretrained(  # noqa: PLR0917  (PEFT's signature)
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: Sequence[str] | None = None,
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """The base that an adapter's config names, with the adapter on it.

        The base's vocabulary is made as large as the adapter's, where tokens were added in training, and it gets as
        many labels as the adapter's head has, where `num_labels` does not say their number.

        Args:
            pretrained_model_name_or_path: the adapter's folder, or its repository on the Hub.
            adapter_name: the adapter's name in the model.
            is_trainable: whether it is trained further.
            config: the adapter's config; default: that in its folder.
            revision: of the adapter's repository.
            import_allowlist: packages from which the base's class may come, where the config names it.
            subfolder: a folder in it.
            **kwargs: for the base's own `from_pretrained` (`dtype`, `device_map`, …); those that say how to fetch
                from the Hub (`token`, `cache_dir`, …) count for both.

        Raises:
            AdapterError: where the adapter is broken, is for another task, or names no base.
            ModelError: where the base cannot be had.
            HubError: where the Hub cannot be reached.
        """
        hub: Any = {name: value for name, value in kwargs.items() if name in HubOptions.__annotations__}
        hub["revision"] = revision
        source = str(pretrained_model_name_or_path)
        config = config or PeftConfig.from_pretrained(source, subfolder, **hub)
        base_class = cls._base_class(
            config, IMPORT_ALLOWLIST if import_allowlist is None else import_allowlist
        )
        if not config.base_model_name_or_path:
            raise AdapterError(
                "names no base model; load it and call PeftModel.from_pretrained", where=source
            )
        base = resolve_base(config.base_model_name_or_path, config.revision)
        if cls.has_labels and not kwargs.keys() & {"num_labels", "id2label", "config"}:
            kwargs |= head_options(source, subfolder, hub)
        model = base_class.from_pretrained(base.path, revision=base.revision or "main", **kwargs)
        resize_embeddings(
            model, source, subfolder, hub, trust_remote_code=kwargs.get("trust_remote_code", False)
        )
        return cls.peft_class.from_pretrained(
            model, source, adapter_name, is_trainable, config, subfolder=subfolder, **hub
        )

    @classmethod
    def _base_class(cls, config: PeftConfig, allowed: Sequence[str]) -> Any:
        if config.task_type is not None:
            wanted = BY_TASK[config.task_type]
            if wanted is not cls.peft_class:
                name = wanted.__name__.replace("PeftModel", "AutoPeftModel")
                raise AdapterError(f"the adapter is for the task {config.task_type}; use {name}")
        elif config.auto_mapping is not None:
            module = config.auto_mapping["parent_library"]
            if module.split(".")[0] not in {entry.split(".")[0] for entry in allowed}:
                raise AdapterError(
                    f"the adapter's config wants to import {module!r}, which can run code; if you trust it, pass "
                    f"import_allowlist=[{module!r}]"
                )
            return getattr(import_module(module), config.auto_mapping["base_model_class"])
        elif not cls.base_class:
            raise AdapterError("the adapter's config names neither its task nor its base's class")
        return getattr(import_module("transformers"), cls.base_class)


class AutoPeftModelForCausalLM(AutoPeftModel):
    """For adapters of models that continue text."""

    base_class = "AutoModelForCausalLM"
    peft_class = PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """For adapters of models that turn a text into another."""

    base_class = "AutoModelForSeq2SeqLM"
    peft_class = PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """For adapters of models that label texts."""

    base_class = "AutoModelForSequenceClassification"
    peft_class = PeftModelForSequenceClassification
    has_labels = True


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """For adapters of models that label tokens."""

    base_class = "AutoModelForTokenClassification"
    peft_class = PeftModelForTokenClassification
    has_labels = True


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """For adapters of models that find an answer in a text."""

    base_class = "AutoModelForQuestionAnswering"
    peft_class = PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """For adapters of models that embed texts."""

    base_class = "AutoModel"
    peft_class = PeftModelForFeatureExtraction


def resize_embeddings(
    model: Any, source: str, subfolder: str | None, hub: Any, *, trust_remote_code: bool
) -> None:
    """Gives the base as many embeddings as the adapter's file has, or at least as its tokenizer has tokens.

    Args:
        model: the base, changed in place.
        source: the adapter's folder or repository.
        subfolder: a folder in it.
        hub: how to fetch from the Hub; `revision` is in it.
        trust_remote_code: run Python code that the tokenizer brings.
    """
    weight = getattr(model.get_input_embeddings(), "weight", None) if hasattr(model, "config") else None
    if weight is None:  # what is no table, such as an image's patches
        return
    rows = len(weight)
    wanted = _saved_rows(model, fetch(source, WEIGHTS_NAME, subfolder, **hub))
    if wanted is None:
        wanted = max(rows, _tokens(source, hub, trust_remote_code=trust_remote_code))
    if wanted != rows:
        model.resize_token_embeddings(wanted)


def _saved_rows(model: Any, path: Path) -> int | None:
    """How many rows the whole input embedding in an adapter's file has, if it is there."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    try:
        with safe_open(path, "pt") as file:
            inside = ("", "base_layer.", "token_adapter.base_layer.")
            for key in {f"{PREFIX}{name}.{path}weight" for path in inside} & set(file.keys()):
                return int(file.get_slice(key).get_shape()[0])
    except SafetensorError:
        return None  # loading says what is wrong with it
    return None


def _tokens(source: str, hub: Any, *, trust_remote_code: bool) -> int:
    """How many tokens the tokenizer beside the adapter has; 0 where there is none."""
    try:
        fetch(source, _TOKENIZER, **hub)
    except (AdapterError, HubError):
        return 0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        source,
        revision=hub["revision"] or "main",
        token=hub.get("token"),
        trust_remote_code=trust_remote_code,
    )
    return len(tokenizer)
