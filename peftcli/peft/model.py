"""PEFT's model: a base model with named adapters, with the names and files that PEFT gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig, TaskType
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.method import AddOptions
from peftcli.errors import AdapterError
from peftcli.peft.storage import (
    LoadResult,
    SaveEmbeddings,
    get_peft_model_state_dict,
    load_peft_weights,
    read_config,
    save_weights,
    set_peft_model_state_dict,
)


class PeftModel(nn.Module):
    """A base model with adapters, for any task.

    `base_model.model` is the base model, changed in place; what this has not (`config`, `device`, `merge_and_unload`,
    `unload`, …) is looked up there.
    """

    # Heads that a task needs, new on most base models: they are trained and saved whole.
    heads: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        *,
        options: AddOptions | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        self.base_model = AdaptedModel(model)
        self.base_model.attach(
            adapter_name,
            _with_base(peft_config, model),
            strict=strict,
            heads=self.heads,
            options=options or AddOptions(autocast_adapter_dtype),
        )
        # Tools ask a model for its adapters' configs, as PEFT's own models have them.
        model.peft_config = self.base_model.peft_config  # type: ignore[assignment]  # a plain attribute
        if getattr(model, "is_activation_checkpointing", False):
            base: Any = model
            base.enable_input_require_grads()

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Each adapter's config."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return self.base_model.active_adapters

    @property
    def active_adapter(self) -> str:
        """The adapter in use (the first, where there are several)."""
        return next(iter(self.active_adapters), "")

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the adapter in use."""
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> Any:
        """The method of the model's adapters."""
        return next(iter(self.peft_config.values())).peft_type

    @property
    def modules_to_save(self) -> set[str] | None:
        """All names in the adapters' `modules_to_save`."""
        names = {
            name
            for config in self.peft_config.values()
            for name in getattr(config, "modules_to_save", None) or ()
        }
        return names or None

    @property
    def generation_config(self) -> Any:
        """The base model's: setting it on this model must reach the model that generates."""
        return self.get_base_model().generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        base: Any = self.get_base_model()
        base.generation_config = value

    def get_base_model(self) -> nn.Module:
        """The base model, with the adapters on it."""
        return self.base_model.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, with the adapters in use."""
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, with the adapters in use."""
        base: Any = self.get_base_model()
        return base.generate(*args, **kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model alone, for as long as the context lasts."""
        was_disabled = self.base_model.disabled
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not was_disabled:
            self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            if not was_disabled:
                self.base_model.enable_adapter_layers()
                self._train_only(trained)

    def add_adapter(
        self, adapter_name: str, peft_config: PeftConfig, autocast_adapter_dtype: bool = True
    ) -> None:
        """Adds an untrained adapter, which is not active: see `set_adapter`."""
        self._add(adapter_name, peft_config, AddOptions(autocast_adapter_dtype), strict=True)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Uses this adapter, and unless `inference_mode` trains it."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        subfolder: str | None = None,
    ) -> LoadResult:
        """Adds a trained adapter from a folder, which is not active; or loads weights into one of that name.

        Raises:
            AdapterError: where its files are broken, or do not fit this model.
        """
        folder = Path(model_id, subfolder or "")
        weights = load_peft_weights(folder)
        is_new = adapter_name not in self.peft_config
        if is_new:
            config = read_config(folder)
            config.inference_mode = not is_trainable
            self._add(
                adapter_name, config, AddOptions(autocast_adapter_dtype, initialise=False), strict=False
            )
        try:
            result = self._load_weights(
                weights, adapter_name, folder, keep_dtype=not (is_trainable and autocast_adapter_dtype)
            )
        except AdapterError:
            if is_new:
                self.delete_adapter(adapter_name)
            raise
        if is_trainable:
            self.base_model.set_requires_grad(adapter_name)
        else:
            self.eval()
        return result

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter."""
        self.base_model.delete_adapter(adapter_name)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these adapters' weights, or stops training them."""
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are."""
        trainable = everything = 0
        for parameter in self.parameters():
            count = parameter.numel()
            if type(parameter).__name__ == "Params4bit":  # two numbers in a byte
                count *= 2 * parameter.element_size()
            everything += count
            trainable += count if parameter.requires_grad else 0
        return trainable, everything

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters are trained, in PEFT's words."""
        trainable, everything = self.get_nb_trainable_parameters()
        share = 100 * trainable / everything
        print(f"trainable params: {trainable:,d} || all params: {everything:,d} || trainable%: {share:.4f}")

    def save_pretrained(
        self,
        save_directory: str | Path,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: SaveEmbeddings = "auto",
        is_main_process: bool = True,
    ) -> None:
        """Writes adapters (default: all) into a folder; one that is not named `default` into a folder in it.

        Raises:
            AdapterError: where the path is a file, or there is no such adapter.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise AdapterError("is a file; name a folder to save the adapter in", where=str(folder))
        for name in self.peft_config if selected_adapters is None else selected_adapters:
            state = get_peft_model_state_dict(self, name, save_embedding_layers)
            if is_main_process:
                target = folder if name == "default" else folder / name
                save_weights(target, state)
                self._saved_config(name).save_pretrained(target)

    @classmethod
    def from_pretrained(  # noqa: PLR0917  (PEFT's signature)
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        subfolder: str | None = None,
    ) -> Self:
        """A base model with a trained adapter from a folder.

        Raises:
            AdapterError: where its files are broken, or do not fit the model.
        """
        folder = Path(model_id, subfolder or "")
        weights = load_peft_weights(folder)
        config = dataclasses.replace(config or read_config(folder), inference_mode=not is_trainable)
        kind: Any = BY_TASK.get(str(config.task_type), cls)
        adapted: Self = kind(
            model,
            config,
            adapter_name,
            options=AddOptions(autocast_adapter_dtype, initialise=False),
            strict=False,
        )
        adapted._load_weights(
            weights, adapter_name, folder, keep_dtype=not (is_trainable and autocast_adapter_dtype)
        )
        if not is_trainable:
            adapted.eval()
        return adapted

    def _load_weights(
        self, weights: dict[str, torch.Tensor], adapter_name: str, folder: Path, *, keep_dtype: bool
    ) -> LoadResult:
        return set_peft_model_state_dict(
            self, weights, adapter_name, keep_dtype=keep_dtype, where=str(folder)
        )

    def _add(self, adapter_name: str, config: PeftConfig, options: AddOptions, *, strict: bool) -> None:
        self.base_model.attach(
            adapter_name,
            _with_base(config, self.get_base_model()),
            activate=False,
            strict=strict,
            heads=self.heads,
            options=options,
        )

    def _saved_config(self, adapter_name: str) -> PeftConfig:
        """As PEFT writes it: frozen, and with the base's class where the task has none of its own."""
        config = dataclasses.replace(self.peft_config[adapter_name], inference_mode=True)
        if config.task_type is None:
            base = type(self.get_base_model())
            config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        return config

    def _train_only(self, parameters: list[nn.Parameter]) -> None:
        wanted = {id(parameter) for parameter in parameters}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in wanted)

    def __getattr__(self, name: str) -> Any:
        """What this does not have, the base model has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)


class PeftModelForCausalLM(PeftModel):
    """For models that continue text."""


class PeftModelForSeq2SeqLM(PeftModel):
    """For models that turn a text into another."""


class PeftModelForSequenceClassification(PeftModel):
    """For models that label texts; the head is trained whole."""

    heads = ("classifier", "score")


class PeftModelForTokenClassification(PeftModel):
    """For models that label tokens; the head is trained whole."""

    heads = ("classifier", "score")


class PeftModelForQuestionAnswering(PeftModel):
    """For models that find an answer in a text; the head is trained whole."""

    heads = ("qa_outputs",)


class PeftModelForFeatureExtraction(PeftModel):
    """For models that embed texts."""


BY_TASK: dict[str, type[PeftModel]] = {
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.SEQ_CLS: PeftModelForSequenceClassification,
    TaskType.TOKEN_CLS: PeftModelForTokenClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
) -> PeftModel:
    """A model, changed in place, with a new adapter ready to be trained; everything else is frozen.

    Args:
        model: the base model, usually one of Transformers.
        peft_config: the adapter's config; the model keeps a copy of it.
        adapter_name: its name.
        autocast_adapter_dtype: give half-precision bases float32 adapters, which training needs.
        revision: the base model's Hub revision, for adapter_config.json.

    Raises:
        AdapterError: where the config does not fit the model.
    """
    if revision is not None:
        peft_config = dataclasses.replace(peft_config, revision=revision)
    kind = BY_TASK.get(str(peft_config.task_type), PeftModel)
    return kind(model, peft_config, adapter_name, autocast_adapter_dtype)


def inject_adapter_in_model(
    peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default"
) -> nn.Module:
    """The model itself with a new adapter in it, and its config in `model.peft_config`."""
    adapted = AdaptedModel(model)
    adapted.attach(adapter_name, peft_config)
    model.peft_config = adapted.peft_config  # type: ignore[assignment]  # a plain attribute
    return model


def _with_base(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """The config with the base model's name, where it has none."""
    if config.base_model_name_or_path is not None:
        return config
    return dataclasses.replace(config, base_model_name_or_path=model.__dict__.get("name_or_path") or None)
