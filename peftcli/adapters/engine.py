"""Adapters on a model: attaching them, switching between them, merging them into it, taking them off."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.batch import called, repeats_of
from peftcli.adapters.config import PeftConfig
from peftcli.adapters.merging import Merging
from peftcli.adapters.meta import to_meta
from peftcli.adapters.method import AddOptions, Call, Method, bare
from peftcli.adapters.naming import check_new_name
from peftcli.adapters.saved_modules import ModulesToSaveWrapper, name_heads, wrap_whole
from peftcli.adapters.targets import clash, find_modules_to_save, find_parameters, find_targets
from peftcli.adapters.token_sites import find_tokens, tie_tokens, wrap_tokens
from peftcli.adapters.tying import check_tied, find_tied, wrap_tied
from peftcli.adapters.walk import place, stack, walk
from peftcli.errors import AdapterError, did_you_mean
from peftcli.registry import ENGINES, resolve


class AdaptedModel(Merging):
    """A model (`model`, changed in place) with named adapters of one method; what PEFT calls a tuner.

    What only one method can do (its `operations`) is called here as well; all else is looked up in the model.

    Attributes:
        mixed: whether adapters of other methods may join: their layers then lie around one another.
        model: the base model, whose adapted modules are AdapterLayers.
        peft_config: each adapter's config, by name.
        active_adapters: the adapters that take part in `forward`.
        targeted_module_names: the modules that adapters are on.
        targeted_parameter_names: the parameters that adapters are on by themselves.
    """

    def __init__(self, model: nn.Module, *, mixed: bool = False) -> None:
        super().__init__()
        self.model = model
        self.mixed = mixed
        self.peft_config: dict[str, PeftConfig] = {}
        self.active_adapters: list[str] = []
        self.targeted_module_names: list[str] = []
        self.targeted_parameter_names: list[str] = []
        self.disabled = False
        self._methods: dict[str, Method] = {}

    def forward(
        self,
        *args: Any,
        adapter_names: Sequence[str] | None = None,
        alora_offsets: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own, with what the active adapters' method adds to its outputs.

        Args:
            *args: the model's.
            adapter_names: for each row of the batch the adapter that it has, or `__base__`.
            alora_offsets: for each row how many of its last tokens an aLoRA adapter acts on, or None for none of them;
                default: from the last time that its invocation tokens come.
            **kwargs: the model's.
        """
        with called(self, adapter_names, Call(args, kwargs, alora_offsets)):
            outputs = self.model(*args, **kwargs)
        for name in () if self.disabled or adapter_names is not None else self.active_adapters[:1]:
            outputs = self._methods[name].after_forward(self, outputs)
        return outputs

    def generate(
        self,
        *args: Any,
        adapter_names: Sequence[str] | None = None,
        alora_offsets: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own; `adapter_names` and `alora_offsets` (of the prompts) as in `forward`."""
        model: Any = self.model
        call = Call(args, kwargs, alora_offsets, repeats_of(model, kwargs))
        with called(self, adapter_names, call):
            return model.generate(*args, **kwargs)

    @classmethod
    def around(cls, model: nn.Module) -> AdaptedModel:
        """A tuner for a model into which adapters were injected, or will be."""
        tuner = cls(model)
        tuner.peft_config = dict(getattr(model, "peft_config", {}))
        tuner._methods = {name: _method(config) for name, config in tuner.peft_config.items()}
        for site in walk(model):
            if isinstance(site.module, AdapterLayer):
                if site.module.parameter:
                    layers = stack(site.module)
                    tuner.targeted_parameter_names += [f"{site.name}.{layer.parameter}" for layer in layers]
                else:
                    tuner.targeted_module_names.append(site.name)
                tuner.active_adapters = list(site.module.active_adapters)
        return tuner

    def method_of(self, adapter_name: str) -> Method:
        """An adapter's method."""
        self._check_known(adapter_name)
        return self._methods[adapter_name]

    def layers(self) -> Iterator[AdapterLayer | ModulesToSaveWrapper]:
        """All modules that hold adapters."""
        for site in walk(self.model):
            if isinstance(site.module, ModulesToSaveWrapper):
                yield site.module
            yield from stack(site.module)

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
        """Puts a new adapter on the layers that its config names. On an error the model is as it was.

        Args:
            adapter_name: a name that is new.
            config: its config; the model keeps a copy, in which names and defaults are resolved.
            activate: whether it becomes the active adapter.
            strict: whether settings that name nothing are errors (else warnings).
            heads: names of heads, which are trained and saved whole where the model has them.
            options: how its weights come to be.

        Raises:
            AdapterError: where the config does not fit the model.
        """
        self._check_new(adapter_name, config)
        config = copy.deepcopy(config)
        name_heads(config, heads)
        method = _method(config)
        method.aim(config, self.model)
        options = options or AddOptions()
        tied = find_tied(self.model, config)
        whole = find_modules_to_save(self.model, config, heads, strict=strict)
        sites, targets = find_targets(
            self.model, config, strict=strict, takes=lambda site: not self._problem(method, site, config)
        )
        config.target_modules = targets  # type: ignore[attr-defined]  # methods that target have it
        sites += find_parameters(self.model, config, sites, whole, strict=strict)
        sites += method.companions(sites, config, self.model)
        check_tied(config, sites, self.model)
        tokens = find_tokens(self.model, config, sites, [*whole, *tied])
        problems = [problem for site in sites if (problem := self._problem(method, site, config))]
        if problems:
            more = f" (and {len(problems) - 1} more modules)" if len(problems) > 1 else ""
            raise AdapterError(f"{problems[0]}{more}")
        others = [item for item in self.peft_config.values() if item.peft_type == config.peft_type]
        method.resolve(sites, config, others, strict)
        for container, kind in method.shared.items():
            if container not in self._modules:
                self.add_module(container, kind())
        method.share(self, sites, adapter_name, config, options)
        if not self.peft_config:
            self.model.requires_grad_(False)
        self.peft_config[adapter_name], self._methods[adapter_name] = config, method
        if activate:
            self.active_adapters = [adapter_name]
        with _uncollected():
            for site in sites:
                self._add(method, site, adapter_name, config, options)
        wrap_whole(whole, adapter_name)
        wrap_tied(self.model, tied, adapter_name)
        wrap_tokens(tokens, adapter_name, options, enabled=not self.disabled)
        if config.trains_tokens:
            tie_tokens(self.model, adapter_name)
        self._train(adapter_name, config, activate)
        known = {*self.targeted_module_names, *self.targeted_parameter_names}
        for site in sites:
            names = self.targeted_parameter_names if site.parameter else self.targeted_module_names
            names += [] if site.name in known else [site.name]

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Lets these adapters, and no others, take part and (unless `inference_mode`) be trained."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for name in names:
            self._check_known(name)
        for layer in self.layers():
            if isinstance(layer, AdapterLayer) and layer.merged:
                warnings.warn("the merged adapters are unmerged before others become active", stacklevel=2)
                layer.unmerge()
            layer.set_adapter(names, inference_mode)
        for name in self.peft_config:
            self._train_shared(name, name in names and not inference_mode)
        self.active_adapters = names

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Trains these adapters' weights, or stops training them."""
        for layer in self.layers():
            layer.set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._train_shared(name, requires_grad)

    def shared_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """What an adapter's file holds of what its layers share, by its key within this model."""
        method, config = self._methods[adapter_name], self.peft_config[adapter_name]
        return {item.saved: item.tensor for item in method.shared_tensors(self, adapter_name, config)}

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """What the active adapters' method does after optimizer step `step` (from 1), before gradients are cleared."""
        for name in self.active_adapters[:1]:
            self._methods[name].after_step(self, step, total_steps)

    def penalty(self) -> torch.Tensor | None:
        """What training adds to the mean loss for the active adapters' method, or nothing."""
        for name in () if self.disabled else self.active_adapters[:1]:
            return self._methods[name].penalty(self)
        return None

    def training_state(self) -> dict[str, Any]:
        """What a resumed training must have beside the active adapters' files, by adapter."""
        return {name: self._methods[name].training_state(self, name) for name in self.active_adapters}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Takes that back."""
        for name, saved in state.items():
            self.method_of(name).load_training_state(self, name, saved)

    def fit(self, adapter_name: str, config: PeftConfig) -> None:
        """Makes an adapter ready for the tensors of a file with this config."""
        self.method_of(adapter_name).fit(self, adapter_name, config)

    def update_and_allocate(self, global_step: int) -> None:
        """PEFT's name for `after_step`."""
        self.after_step(global_step)

    def enable_adapter_layers(self) -> None:
        """Turns the adapters on again."""
        self._enable(True)

    def disable_adapter_layers(self) -> None:
        """Turns the adapters off: the model acts as its base (but for biases that were trained)."""
        if any(getattr(config, "bias", "none") != "none" for config in self.peft_config.values()):
            warnings.warn("trained biases stay in place while adapters are off", stacklevel=2)
        self._enable(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter; where no other was active, the first that is left becomes active."""
        self._check_known(adapter_name)
        for layer in self.layers():
            if isinstance(layer, AdapterLayer) and adapter_name in layer.merged_adapters:
                raise AdapterError(
                    f"{adapter_name!r} is merged into the model; unmerge it before deleting it"
                )
        for layer in self.layers():
            layer.delete_adapter(adapter_name)
        for container in self._shared(adapter_name):
            del container[adapter_name]
        del self.peft_config[adapter_name], self._methods[adapter_name]
        active = [name for name in self.active_adapters if name != adapter_name]
        self.set_adapter(active or list(self.peft_config)[:1])

    def take_off(self, adapter_name: str, site: Site) -> None:
        """Takes an adapter off one layer; the base's own module is in its place again where it has no other."""
        layers = list(stack(site.module))
        for layer in layers:
            layer.delete_adapter(adapter_name)
        if not any(layer.adapter_names() for layer in layers):
            setattr(site.parent, site.child, bare(site.module))
            self.targeted_module_names.remove(site.name)

    def _enable(self, enabled: bool) -> None:
        for layer in self.layers():
            layer.enable_adapters(enabled)
        self.disabled = not enabled

    def _check_new(self, adapter_name: str, config: PeftConfig) -> None:
        check_new_name(adapter_name, self.peft_config)
        if hasattr(nn.ModuleDict, adapter_name) or adapter_name in vars(nn.Module()):
            raise AdapterError(
                f"{adapter_name!r} cannot name an adapter: PyTorch's containers have something so named"
            )
        if config.is_prompt_learning:
            raise AdapterError(
                f"{config.peft_type} acts on a model's inputs and not on its layers: it needs a model of its own, "
                "made by get_peft_model"
            )
        others = list(self.peft_config.values())
        if others and not self.mixed and others[0].peft_type != config.peft_type:
            raise AdapterError(
                f"the model has adapters of {others[0].peft_type}; one of {config.peft_type} cannot join them"
            )
        biased = [item for item in (config, *others) if getattr(item, "bias", "none") != "none"]
        if others and len(biased) > 1:
            raise AdapterError("only one adapter of a model can train biases; set bias to none")

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise AdapterError(
                f"there is no adapter {adapter_name!r}; {did_you_mean(adapter_name, self.peft_config)}"
            )

    def _problem(self, method: Method, site: Site, config: PeftConfig) -> str:
        return clash(site) or method.problem(site, config, self.model)

    def _add(
        self, method: Method, site: Site, adapter_name: str, config: PeftConfig, options: AddOptions
    ) -> None:
        if site.parameter:
            site = place(site)
        layer = site.module
        if not isinstance(layer, method.layer) or layer.parameter != site.parameter:
            layer = method.wrap(site, config, self)
            if not site.module.training:  # a new module is in training mode by itself
                layer.train(mode=False)
            if self.disabled:
                layer.enable_adapters(False)
            setattr(site.parent, site.child, layer)
        method.add(layer, site, adapter_name, config, options)
        if not layer.training:
            # New modules are in training mode by themselves; a new adapter's dropout must not act in evaluation.
            for container in layer.children():
                if isinstance(container, nn.ModuleDict) and adapter_name in container:
                    container[adapter_name].eval()
        if options.low_cpu_mem_usage:
            to_meta(layer, adapter_name)

    def _train(self, adapter_name: str, config: PeftConfig, activate: bool) -> None:
        trained = activate and not config.inference_mode
        for layer in self.layers():
            layer.follow(self.active_adapters)
            layer.set_requires_grad([adapter_name], trained)
        self._train_shared(adapter_name, trained)
        if trained and (mode := getattr(config, "bias", "none")) != "none":
            biases = list(_biases(self.model, mode))
            if not biases:
                warnings.warn(f"bias: {mode!r} trains nothing, for there is no bias", stacklevel=2)
            for bias in biases:
                bias.requires_grad_(True)

    def _shared(self, adapter_name: str) -> Iterator[Any]:
        """The containers that hold what an adapter's layers share."""
        for attribute in self._methods[adapter_name].shared:
            container = getattr(self, attribute)
            if adapter_name in container:
                yield container

    def _train_shared(self, adapter_name: str, trained: bool) -> None:
        for container in self._shared(adapter_name):
            if isinstance(container, nn.ParameterDict):
                container[adapter_name].requires_grad_(trained)

    def __getattr__(self, name: str) -> Any:
        """What this does not have, the base model has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("model", "_methods"):
                raise
            for method in self._methods.values():
                if name in method.operations:
                    return partial(method.operations[name], self)
            return getattr(self.model, name)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python's garbage collector from looking, over and over, through thousands of new modules."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _method(config: PeftConfig) -> Method:
    method: Method = resolve(ENGINES, str(config.peft_type), what="peft_type")()
    return method


def _biases(model: nn.Module, mode: str) -> Iterator[nn.Parameter]:
    if mode == "none":
        return
    own = getattr(model, "bias", None)
    if mode == "all" and isinstance(own, nn.Parameter):
        yield own
    for site in walk(model):
        adapted = isinstance(site.module, AdapterLayer)
        if isinstance(site.module, ModulesToSaveWrapper) or (mode != "all" and not adapted):
            continue
        bias = getattr(site.module, "bias", None)
        if isinstance(bias, nn.Parameter):
            yield bias
