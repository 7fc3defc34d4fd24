"""Modules that have one weight with the input embeddings, such as a tied output head, and their copies kept one.

`ensure_weight_tying` is about copies of whole modules (`modules_to_save`): without it each module has its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from peftcli.adapters.base import Site
from peftcli.adapters.saved_modules import ModulesToSaveWrapper, wrap_whole
from peftcli.adapters.state import embedding_layers
from peftcli.adapters.walk import innermost, walk
from peftcli.errors import AdapterError, PeftWarning


def embedding_site(model: nn.Module) -> Site | None:
    """The place of the input embeddings; None where the model does not tell."""
    embedding = embedding_layers(model)[0]
    return next((site for site in walk(model) if site.module is embedding), None)


def sharing_sites(model: nn.Module) -> list[Site]:
    """The other modules that have the input embeddings' weight."""
    embedding = embedding_layers(model)[0]
    base = None if embedding is None else innermost(embedding)
    weight = getattr(base, "weight", None)
    if weight is None:
        return []
    pairs = [(site, innermost(site.module)) for site in walk(model)]
    return [site for site, own in pairs if own is not base and getattr(own, "weight", None) is weight]


def find_tied(model: nn.Module, config: Any) -> list[Site]:
    """The modules whose copies are to be one with the embeddings' own; `modules_to_save` then names those alone.

    So PEFT writes it: what is tied to the embeddings is not named.
    """
    if not getattr(config, "ensure_weight_tying", False):
        return []
    embedding, tied = embedding_site(model), sharing_sites(model)
    if embedding is None or not tied:
        _say_no_effect("the model has no weight that is tied to its input embeddings")
        return []
    names = list(config.modules_to_save or ())
    if not any(site.name.endswith(name) for name in names for site in (embedding, *tied)):
        if not config.trains_tokens:
            _say_no_effect("neither modules_to_save nor trainable_token_indices names what is tied")
        return []
    kept = [name for name in names if not any(site.name.endswith(name) for site in tied)]
    config.modules_to_save = kept if embedding.name in kept else [*kept, embedding.name]
    return tied


def check_tied(config: Any, adapted: Sequence[Site], model: nn.Module) -> None:
    """Refuses adapters on tied modules themselves, where the weight is to stay one: theirs would be two."""
    if not getattr(config, "ensure_weight_tying", False):
        return
    embedding, tied = embedding_site(model), sharing_sites(model)
    modules = [site.module for site in ([embedding, *tied] if embedding and tied else [])]
    for site in adapted:
        if any(site.module is module for module in modules):
            raise AdapterError(
                f"ensure_weight_tying: the adapter on {site.name} itself cannot be tied yet; take it out of "
                "target_modules, or train its tokens (trainable_token_indices)"
            )


def wrap_tied(model: nn.Module, tied: Sequence[Site], adapter_name: str) -> None:
    """Gives an adapter copies of modules that have the weight of its copy of the input embeddings."""
    wrap_whole(tied, adapter_name)
    for site in tied:
        wrapper, leader = getattr(site.parent, site.child), embedding_layers(model)[0]
        assert isinstance(wrapper, ModulesToSaveWrapper)
        assert isinstance(leader, ModulesToSaveWrapper)  # `find_tied` has named it
        wrapper.modules_to_save[adapter_name].weight = leader.modules_to_save[adapter_name].weight


def _say_no_effect(reason: str) -> None:
    warnings.warn(f"ensure_weight_tying has no effect: {reason}", PeftWarning, stacklevel=2)
