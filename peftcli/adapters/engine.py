"""Adapters on a model: attaching them, switching between them, merging them into it, taking them off."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.config import PeftConfig
from peftcli.adapters.method import AddOptions, Method
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.state import embedding_layers
from peftcli.adapters.targets import find_modules_to_save, find_targets
from peftcli.adapters.walk import walk
from peftcli.errors import AdapterError, did_you_mean
from peftcli.registry import ENGINES, resolve


class AdaptedModel(nn.Module):
    """A model (`model`, changed in place) with named adapters of one method; what PEFT calls a tuner.

    Attributes:
        model: the base model, whose adapted modules are AdapterLayers.
        peft_config: each adapter's config, by name.
        active_adapters: the adapters that take part in `forward`.
        targeted_module_names: the modules that adapters are on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.active_adapters: list[str] = []
        self.targeted_module_names: list[str] = []
        self.disabled = False
        self._methods: dict[str, Method] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, with what the active adapters' method adds to its outputs."""
        outputs = self.model(*args, **kwargs)
        for name in () if self.disabled else self.active_adapters[:1]:
            outputs = self._methods[name].after_forward(self, outputs)
        return outputs

    def layers(self) -> Iterator[AdapterLayer | ModulesToSaveWrapper]:
        """All modules that hold adapters."""
        for site in walk(self.model):
            if isinstance(site.module, AdapterLayer | ModulesToSaveWrapper):
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
        _name_heads(config, heads)
        method: Method = resolve(ENGINES, str(config.peft_type), what="peft_type")()
        options = options or AddOptions()
        whole = find_modules_to_save(self.model, config, heads, strict=strict)
        sites, targets = find_targets(
            self.model, config, strict=strict, takes=lambda site: not method.problem(site, config, self.model)
        )
        config.target_modules = targets  # type: ignore[attr-defined]  # methods that target have it
        problems = [problem for site in sites if (problem := method.problem(site, config, self.model))]
        if problems:
            more = f" (and {len(problems) - 1} more modules)" if len(problems) > 1 else ""
            raise AdapterError(f"{problems[0]}{more}")
        method.resolve(sites, config, list(self.peft_config.values()), strict)
        if not self.peft_config:
            self.model.requires_grad_(False)
        self.peft_config[adapter_name], self._methods[adapter_name] = config, method
        if activate:
            self.active_adapters = [adapter_name]
        method.share(self, sites, adapter_name, config, options)
        for site in sites:
            self._add(method, site, adapter_name, config, options)
        self._wrap_whole(whole, adapter_name)
        self._train(adapter_name, config, activate)
        known = set(self.targeted_module_names)
        self.targeted_module_names += [site.name for site in sites if site.name not in known]

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

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Puts adapters (default: the active ones) into the base weights; `unmerge_adapter` undoes it exactly."""
        for layer in self.layers():
            if isinstance(layer, AdapterLayer):
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def unmerge_adapter(self) -> None:
        """Gives the base its own weights back."""
        for layer in self.layers():
            if isinstance(layer, AdapterLayer) and layer.merged:
                layer.unmerge()

    def merge_and_unload(
        self,
        progressbar: bool = False,  # noqa: ARG002  (PEFT's signature; merging is too quick for a bar)
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """The base model with adapters (default: the active ones) in its weights, and nothing else of them."""
        was_tied = _is_tied(self.model)
        self.merge_adapter(adapter_names, safe_merge)
        model = self._unload(merged=True)
        if was_tied and not _is_tied(model):
            _untie(model)
        return model

    def unload(self) -> nn.Module:
        """The base model without adapters."""
        return self._unload(merged=False)

    def _unload(self, *, merged: bool) -> nn.Module:
        for site in list(walk(self.model)):
            if isinstance(site.module, AdapterLayer):
                if site.module.merged and not merged:
                    site.module.unmerge()
                setattr(site.parent, site.child, site.module.get_base_layer())
            elif isinstance(site.module, ModulesToSaveWrapper):
                setattr(site.parent, site.child, site.module.current())
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def _enable(self, enabled: bool) -> None:
        for layer in self.layers():
            layer.enable_adapters(enabled)
        self.disabled = not enabled

    def _check_new(self, adapter_name: str, config: PeftConfig) -> None:
        if not adapter_name or "." in adapter_name or "/" in adapter_name:
            raise AdapterError(
                f"{adapter_name!r} cannot name an adapter; choose a name without dots and slashes"
            )
        if adapter_name in self.peft_config:
            raise AdapterError(f"there is an adapter {adapter_name!r} already; choose another name")
        others = list(self.peft_config.values())
        if others and others[0].peft_type != config.peft_type:
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

    def _add(
        self, method: Method, site: Site, adapter_name: str, config: PeftConfig, options: AddOptions
    ) -> None:
        layer = site.module
        if not isinstance(layer, method.layer):
            layer = method.wrap(site, config, self)
            layer.train(site.module.training)
            layer.enable_adapters(not self.disabled)
            setattr(site.parent, site.child, layer)
        method.add(layer, site, adapter_name, config, options)

    def _wrap_whole(self, sites: Sequence[Site], adapter_name: str) -> None:
        for site in sites:
            wrapper = site.module
            if not isinstance(wrapper, ModulesToSaveWrapper):
                wrapper = ModulesToSaveWrapper(site.module)
                wrapper.train(site.module.training)
                setattr(site.parent, site.child, wrapper)
            wrapper.add(adapter_name)

    def _train(self, adapter_name: str, config: PeftConfig, activate: bool) -> None:
        trained = activate and not config.inference_mode
        for layer in self.layers():
            layer.follow(self.active_adapters)
            layer.set_requires_grad([adapter_name], trained)
        self._train_shared(adapter_name, trained)
        if trained:
            for bias in _biases(self.model, getattr(config, "bias", "none")):
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
            if name == "model":
                raise
            return getattr(self.model, name)


def _name_heads(config: PeftConfig, heads: Sequence[str]) -> None:
    """As PEFT writes it: a task's usual heads are in modules_to_save, whether the model has them or not."""
    if heads and hasattr(config, "modules_to_save"):
        named = list(config.modules_to_save or ())
        config.modules_to_save = named + [head for head in heads if head not in named]


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


def _is_tied(model: nn.Module) -> bool:
    """Whether the output head and the input embeddings are one tensor."""
    embedding, head = (getattr(layer, "weight", None) for layer in embedding_layers(model))
    return embedding is not None and embedding is head


def _untie(model: Any) -> None:
    """Says in the model's config that its embeddings are no longer tied: merging made them differ."""
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False
        warnings.warn(
            "the merged embeddings differ from the output head's, so they are no longer tied "
            "(tie_word_embeddings is now false)",
            stacklevel=3,
        )
