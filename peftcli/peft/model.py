"""PEFT's model: a base model with named adapters, with the names and files that PEFT gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig, PeftType, TaskType
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.method import AddOptions
from peftcli.adapters.prompted import PromptedModel
from peftcli.errors import AdapterError
from peftcli.hub import HubOptions
from peftcli.peft import prompt_forward, prompt_generation
from peftcli.peft.fused_experts import fuse_experts
from peftcli.peft.saving import Saved
from peftcli.peft.storage import LoadResult, load_peft_weights, set_peft_model_state_dict
from peftcli.peft.trainer import labelled, sign_as


class PeftModel(Saved):
    """A base model with adapters, for any task.

    `base_model.model` is the base model, changed in place; what this has not (`config`, `device`, `merge_and_unload`,
    `unload`, …) is looked up there.
    """

    # Heads that a task needs, new on most base models: they are trained and saved whole.
    heads: ClassVar[tuple[str, ...]] = ()
    # Whether adapters of several methods may be in one model.
    mixed: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        *,
        options: AddOptions | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        prompted = peft_config.is_prompt_learning and not self.mixed
        self.take_in(PromptedModel(model) if prompted else AdaptedModel(model, mixed=self.mixed))
        self.tuner.attach(
            adapter_name,
            _with_base(peft_config, model),
            strict=strict,
            heads=self.heads,
            options=options or _options(autocast_adapter_dtype, low_cpu_mem_usage),
        )
        # Tools ask a model for its adapters' configs, as PEFT's own models have them.
        model.peft_config = self.tuner.peft_config  # type: ignore[assignment]  # a plain attribute
        if getattr(model, "is_activation_checkpointing", False):
            base: Any = model
            base.enable_input_require_grads()
        sign_as(self, model)

    @labelled("labels")
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, with the adapters in use."""
        tuner = self.tuner
        if isinstance(tuner, PromptedModel):
            return prompt_forward.forward(tuner, args, kwargs)
        return tuner(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, with the adapters in use."""
        tuner = self.tuner
        if isinstance(tuner, PromptedModel):
            return prompt_generation.generate(tuner, args, kwargs)
        return tuner.generate(*args, **kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model alone, for as long as the context lasts."""
        was_disabled = self.tuner.disabled
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not was_disabled:
            self.tuner.disable_adapter_layers()
        try:
            yield
        finally:
            if not was_disabled:
                self.tuner.enable_adapter_layers()
                self._train_only(trained)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Adds an untrained adapter, which is not active: see `set_adapter`."""
        options = _options(autocast_adapter_dtype, low_cpu_mem_usage)
        self._add(adapter_name, peft_config, options, strict=True)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Uses this adapter, and unless `inference_mode` trains it."""
        self.tuner.set_adapter(adapter_name, inference_mode)

    def load_adapter(  # noqa: PLR0917  (PEFT's signature)
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | torch.device | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        *,
        subfolder: str | None = None,
        ignore_mismatched_sizes: bool = False,
        **hub: Unpack[HubOptions],
    ) -> LoadResult:
        """Adds a trained adapter, which is not active; or loads weights into one of that name.

        Args:
            model_id: a folder, or a repository of the Hub.
            adapter_name: the adapter's name in this model.
            is_trainable: whether it is trained further; if not, the model is put into evaluation mode.
            torch_device: where its weights are read to, before they are put beside the base's.
            autocast_adapter_dtype: whether half-precision weights become float32, which training needs; else they
                keep the file's dtype.
            ephemeral_gpu_offload: not supported.
            low_cpu_mem_usage: use the file's tensors themselves instead of copying them.
            key_mapping: as for `load_peft_weights`.
            subfolder: a folder in it.
            ignore_mismatched_sizes: leave out tensors of another shape, with a warning.
            **hub: how to fetch from the Hub: `revision`, `token`, `cache_dir`, ….

        Raises:
            AdapterError: where its files are broken, or do not fit this model.
            HubError: where the Hub cannot be reached.
        """
        _refuse_offload(ephemeral_gpu_offload)
        weights = load_peft_weights(model_id, torch_device, key_mapping, subfolder, **hub)
        is_new = adapter_name not in self.peft_config
        if is_new:
            config = PeftConfig.from_pretrained(model_id, subfolder, **hub)
            if config.peft_type == PeftType.LORA:
                config, weights = fuse_experts(config, weights, self.get_base_model())
            config.inference_mode = not is_trainable
            self._add(adapter_name, config, _options(autocast_adapter_dtype, loaded=True), strict=False)
        else:
            self.tuner.fit(adapter_name, PeftConfig.from_pretrained(model_id, subfolder, **hub))
        try:
            result = set_peft_model_state_dict(
                self,
                weights,
                adapter_name,
                ignore_mismatched_sizes,
                low_cpu_mem_usage,
                keep_dtype=not autocast_adapter_dtype,
                where=str(Path(model_id, subfolder or "")),
            )
        except AdapterError:
            if is_new:
                self.delete_adapter(adapter_name)
            raise
        if is_trainable:
            self.tuner.set_requires_grad(adapter_name)
        elif self.training:
            self.eval()
        return result

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter."""
        self.tuner.delete_adapter(adapter_name)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these adapters' weights, or stops training them."""
        self.tuner.set_requires_grad(adapter_names, requires_grad)

    @classmethod
    def from_pretrained(  # noqa: PLR0917  (PEFT's signature)
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        *,
        torch_device: str | torch.device | None = None,
        subfolder: str | None = None,
        ignore_mismatched_sizes: bool = False,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """A base model, changed in place, with a trained adapter; see `load_adapter` for the arguments.

        Raises:
            AdapterError: where its files are broken, or do not fit the model.
            HubError: where the Hub cannot be reached.
        """
        _refuse_offload(ephemeral_gpu_offload)
        weights = load_peft_weights(model_id, torch_device, key_mapping, subfolder, **hub)
        config = config or PeftConfig.from_pretrained(model_id, subfolder, **hub)
        if config.peft_type == PeftType.LORA:
            config, weights = fuse_experts(config, weights, model)
        config = dataclasses.replace(config, inference_mode=not is_trainable)
        kind: Any = cls if cls.mixed else BY_TASK.get(str(config.task_type), cls)
        adapted: Self = kind(
            model, config, adapter_name, options=_options(autocast_adapter_dtype, loaded=True), strict=False
        )
        set_peft_model_state_dict(
            adapted,
            weights,
            adapter_name,
            ignore_mismatched_sizes,
            low_cpu_mem_usage,
            keep_dtype=not autocast_adapter_dtype,
            where=str(Path(model_id, subfolder or "")),
        )
        if not is_trainable:
            adapted.eval()
        return adapted

    def _add(self, adapter_name: str, config: PeftConfig, options: AddOptions, *, strict: bool) -> None:
        self.tuner.attach(
            adapter_name,
            _with_base(config, self.get_base_model()),
            activate=False,
            strict=strict,
            heads=self.heads,
            options=options,
        )

    def _train_only(self, parameters: list[nn.Parameter]) -> None:
        wanted = {id(parameter) for parameter in parameters}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in wanted)


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

    @labelled("start_positions", "end_positions")
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, with the adapters in use."""
        return super().forward(*args, **kwargs)


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


class PeftMixedModel(PeftModel):
    """Adapters of several methods in one model, each method's layers around those of the one before."""

    mixed = True


def get_peft_model(  # noqa: PLR0917  (PEFT's signature)
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """A model, changed in place, with a new adapter ready to be trained; everything else is frozen.

    Args:
        model: the base model, usually one of Transformers.
        peft_config: the adapter's config; the model keeps a copy of it.
        adapter_name: its name.
        mixed: whether adapters of other methods may join it.
        autocast_adapter_dtype: give half-precision bases float32 adapters, which training needs.
        revision: the base model's Hub revision, for adapter_config.json.
        low_cpu_mem_usage: leave the adapter on the meta device, until weights are loaded into it.

    Raises:
        AdapterError: where the config does not fit the model.
    """
    if revision is not None:
        peft_config = dataclasses.replace(peft_config, revision=revision)
    kind = PeftMixedModel if mixed else BY_TASK.get(str(peft_config.task_type), PeftModel)
    return kind(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)


def _options(autocast: bool, low_cpu_mem_usage: bool = False, *, loaded: bool = False) -> AddOptions:
    """How a new adapter comes to be; `loaded`: a file's weights follow."""
    return AddOptions(autocast, not (loaded or low_cpu_mem_usage), low_cpu_mem_usage)


def _refuse_offload(ephemeral_gpu_offload: bool) -> None:
    if ephemeral_gpu_offload:
        raise AdapterError("ephemeral_gpu_offload is not supported; leave it out")


def _with_base(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """The config with the base model's name, where it has none."""
    if config.base_model_name_or_path is not None:
        return config
    return dataclasses.replace(config, base_model_name_or_path=model.__dict__.get("name_or_path") or None)
