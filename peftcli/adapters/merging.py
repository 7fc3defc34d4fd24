"""Adapters into the base's weights and out again, and off the model.

Where methods are mixed, layers lie around one another. Each merges into what those inside it made of the weight, so
they go in from the inside out, and come out from the outside in.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.config import PeftConfig
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.state import embedding_layers
from peftcli.adapters.walk import stack, walk
from peftcli.errors import AdapterError


class Merging(nn.Module):
    """A model (`model`) whose adapters can be merged into it and taken off it."""

    model: nn.Module
    peft_config: dict[str, PeftConfig]
    active_adapters: list[str]

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Puts adapters (default: the active ones) into the base weights; `unmerge_adapter` undoes it exactly.

        Raises:
            AdapterError: where the result is not finite (with `safe_merge`), or an adapter cannot be merged.
        """
        for name in self.active_adapters if adapter_names is None else adapter_names:
            if name in self.peft_config and (reason := self.peft_config[name].never_merges):
                raise AdapterError(f"{name!r} {reason}: it cannot be merged into the base's weights")
        for site in walk(self.model):
            layers = list(stack(site.module))
            if len(layers) > 1 and not layers[0].parameter:
                _merge_nested(site.name, layers, adapter_names, safe_merge=safe_merge)
                continue
            for layer in layers:  # one, or several that are on different parameters
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def unmerge_adapter(self) -> None:
        """Gives the base its own weights back."""
        for site in walk(self.model):
            _unmerge(list(stack(site.module)))

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
        for site in list(walk(self.model, repeated=True)):
            if layers := list(stack(site.module)):
                if not merged:
                    _unmerge(layers)
                setattr(site.parent, site.child, layers[0].get_base_layer())
            elif isinstance(site.module, ModulesToSaveWrapper):
                setattr(site.parent, site.child, site.module.current())
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model


def _merge_nested(
    name: str, layers: Sequence[AdapterLayer], adapter_names: Sequence[str] | None, *, safe_merge: bool
) -> None:
    wanted = []
    for layer in layers:
        more = layer.active_adapters if adapter_names is None else adapter_names
        own = layer.adapter_names()
        wanted.append([each for each in dict.fromkeys([*layer.merged_adapters, *more]) if each in own])
    for i, layer in enumerate(layers):
        left = set(layer.active_adapters) & set(layer.adapter_names()) - set(wanted[i])
        if left and any(wanted[:i]):
            raise AdapterError(
                f"{name}: {', '.join(sorted(left))} lies within the adapters to merge; merge it with them"
            )
    _unmerge(layers)
    for layer, names in reversed(list(zip(layers, wanted, strict=True))):
        layer.merge(safe_merge=safe_merge, adapter_names=names)


def _unmerge(layers: Sequence[AdapterLayer]) -> None:
    for layer in layers:
        if layer.merged:
            layer.unmerge()


def _is_tied(model: nn.Module) -> bool:
    """Whether the output head and the input embeddings are one tensor."""
    # Of layers the base's own: some give theirs with what is trained of it.
    layers = embedding_layers(model)
    own = (next((each.get_base_layer() for each in stack(layer)), layer) for layer in layers)
    embedding, head = (getattr(base, "weight", None) for base in own)
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
