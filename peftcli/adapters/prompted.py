"""The engine of the prompt methods: which prompts a model has, which is in use, what is trained.

What the engine of layers (AdaptedModel) is to adapters, this is to prompts, with the same names. The base model stays
as it is, but for heads that are trained whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from peftcli.adapters.config import PeftConfig
from peftcli.adapters.method import AddOptions
from peftcli.adapters.naming import check_new_name
from peftcli.adapters.prompt_method import PromptEncoder, PromptMethod, PromptStart, word_embeddings
from peftcli.adapters.saved_modules import ModulesToSaveWrapper, name_heads, wrap_whole
from peftcli.adapters.targets import find_modules_to_save
from peftcli.adapters.walk import walk
from peftcli.adapters.weights import HALF
from peftcli.errors import AdapterError, did_you_mean
from peftcli.registry import ENGINES, resolve


class PromptedModel:
    """A model (`model`) with named prompts of one method; no module, since the prompts stand beside the model.

    Attributes:
        model: the base model.
        peft_config: each prompt's config, by name.
        active_adapters: the prompt in use: one, or none.
        prompt_encoder: the prompts.
        prompt_tokens: the numbers of each prompt's virtual tokens.
        disabled: whether the model acts as its base.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.active_adapters: list[str] = []
        self.prompt_encoder = nn.ModuleDict()
        self.prompt_tokens: dict[str, torch.Tensor] = {}
        self.disabled = False
        self._methods: dict[str, PromptMethod] = {}

    @property
    def current(self) -> tuple[PromptMethod, Any, PromptEncoder] | None:
        """The method, the config and the prompt in use; None where the model acts as its base."""
        if self.disabled or not self.active_adapters:
            return None
        name = self.active_adapters[0]
        return self._methods[name], self.peft_config[name], self._prompt(name)

    def layers(self) -> Iterator[ModulesToSaveWrapper]:
        """The modules of the base that prompts have copies of."""
        for site in walk(self.model):
            if isinstance(site.module, ModulesToSaveWrapper):
                yield site.module

    def attach(
        self,
        adapter_name: str,
        config: PeftConfig,
        *,
        activate: bool = True,
        strict: bool = True,
        heads: Sequence[str] = (),
        options: AddOptions | None = None,
    ) -> None:
        """Adds a new prompt; the arguments are those of `AdaptedModel.attach`. On an error the model is as it was.

        Raises:
            AdapterError: where the config does not fit the model.
        """
        self._check_new(adapter_name, config)
        completed: Any = copy.deepcopy(config)
        name_heads(completed, heads)
        options = options or AddOptions()
        method: PromptMethod = resolve(ENGINES, str(completed.peft_type), what="peft_type")()
        method.complete(completed, self.model)
        whole = find_modules_to_save(self.model, completed, heads, strict=strict)
        words = word_embeddings(self.model)
        start = PromptStart(words, options.initialise and not completed.inference_mode)
        # Made on the CPU, so that a seed gives the same prompt on every device.
        encoder = method.encoder(completed, start)
        weight = words.weight
        narrow = not options.autocast_adapter_dtype and weight.dtype in HALF
        dtype = weight.dtype if narrow or weight.dtype == torch.float64 else torch.float32
        # What is in its place stays the same tensors: those of a memory plan hold no numbers, and cannot be moved.
        if any((each.device, each.dtype) != (weight.device, dtype) for each in encoder.parameters()):
            encoder.to(weight.device, dtype)
        if not self.peft_config:
            self.model.requires_grad_(False)
        self.peft_config[adapter_name], self._methods[adapter_name] = completed, method
        self.prompt_encoder[adapter_name] = encoder
        total = completed.num_virtual_tokens * completed.num_transformer_submodules
        self.prompt_tokens[adapter_name] = torch.arange(total)
        if activate:
            self.active_adapters = [adapter_name]
        wrap_whole(whole, adapter_name)
        for layer in self.layers():
            layer.follow(self.active_adapters)
        self.set_requires_grad(adapter_name, activate and not completed.inference_mode)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Uses this prompt, and unless `inference_mode` trains it.

        Raises:
            AdapterError: for several: there is one place before the input.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise AdapterError(f"only one prompt can be in use, and not {', '.join(names)} together")
        for name in names:
            self._check_known(name)
        for layer in self.layers():
            layer.set_adapter(names, inference_mode)
        for name in self.peft_config:
            self._prompt(name).trained(name in names and not inference_mode)
        self.active_adapters = names

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these prompts, or stops training them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._check_known(name)
            self._prompt(name).trained(requires_grad)
            for layer in self.layers():
                layer.set_requires_grad(name, requires_grad)

    def saved_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """What a prompt's file holds beside heads."""
        return self._prompt(adapter_name).saved()

    def take(self, adapter_name: str, saved: dict[str, torch.Tensor]) -> None:
        """Takes over the tensors of a file, where those of `saved_tensors` are not the live ones."""
        self._prompt(adapter_name).take(saved)

    def training_state(self) -> dict[str, Any]:
        """What a resumed training must have beside the file of the prompt in use, by prompt."""
        return {name: self._prompt(name).unsaved() for name in self.active_adapters}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Takes that back."""
        for name, saved in state.items():
            self._prompt(name).restore(saved)

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Nothing follows an optimizer step."""

    def penalty(self) -> None:
        """Nothing is added to the loss."""

    def own_loss(self) -> str:
        """Why a loss made from logits alone is not that of the prompt in use, or nothing."""
        current = self.current
        return "" if current is None else current[0].own_loss(current[1])

    def fit(self, adapter_name: str, config: PeftConfig) -> None:
        """A prompt has one shape."""

    def enable_adapter_layers(self) -> None:
        """Uses the prompt again."""
        self._enable(True)

    def disable_adapter_layers(self) -> None:
        """Lets the model act as its base."""
        self._enable(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes a prompt; where it was in use, the first that is left comes into use."""
        self._check_known(adapter_name)
        for layer in self.layers():
            layer.delete_adapter(adapter_name)
        del self.peft_config[adapter_name], self._methods[adapter_name]
        del self.prompt_encoder[adapter_name], self.prompt_tokens[adapter_name]
        active = [name for name in self.active_adapters if name != adapter_name]
        self.set_adapter(active or list(self.peft_config)[:1])

    def merge_adapter(self, *_: Any, **__: Any) -> NoReturn:
        """A prompt is no change of weights.

        Raises:
            AdapterError: always.
        """
        raise AdapterError("a prompt stands before the model's input and cannot be merged into its weights")

    merge_and_unload = merge_adapter

    def unload(self) -> nn.Module:
        """The base model; of heads that were trained, the copies in use."""
        for site in list(walk(self.model)):
            if isinstance(site.module, ModulesToSaveWrapper):
                setattr(site.parent, site.child, site.module.current())
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def _enable(self, enabled: bool) -> None:
        for layer in self.layers():
            layer.enable_adapters(enabled)
        self.disabled = not enabled

    def _prompt(self, adapter_name: str) -> PromptEncoder:
        prompt = self.prompt_encoder[adapter_name]
        assert isinstance(prompt, PromptEncoder)
        return prompt

    def _check_new(self, adapter_name: str, config: PeftConfig) -> None:
        check_new_name(adapter_name, self.peft_config)
        if config.task_type is None:
            raise AdapterError(
                f"{config.peft_type} needs a task_type, which says where the prompt goes; tasks of pictures and "
                "recordings have none"
            )
        first = next(iter(self.peft_config.values()), config)
        if first.peft_type != config.peft_type:
            raise AdapterError(
                f"the model has adapters of {first.peft_type}; one of {config.peft_type} cannot join them"
            )
        if first.task_type != config.task_type:
            raise AdapterError(
                f"the model's task is {first.task_type}; a prompt for {config.task_type} cannot join"
            )

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise AdapterError(
                f"there is no adapter {adapter_name!r}; {did_you_mean(adapter_name, self.peft_config)}"
            )

    def __getattr__(self, name: str) -> Any:
        """What this does not have, the base model has."""
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)


def is_prompted(model: nn.Module) -> bool:
    """Whether what is around the model is prompts, not adapters on its layers."""
    return isinstance(getattr(model, "tuner", None), PromptedModel)
