"""Where single tokens are trained beside a method's layers (`trainable_token_indices`), and with which others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.meta import to_meta
from peftcli.adapters.method import AddOptions
from peftcli.adapters.naming import similar
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.state import embedding_layers
from peftcli.adapters.tokens import KINDS, TrainableTokensLayer, TrainableTokensWrapper
from peftcli.adapters.tying import embedding_site, sharing_sites
from peftcli.adapters.walk import innermost, stack, walk
from peftcli.errors import AdapterError

FIELD = "trainable_token_indices"


class TokenSite(NamedTuple):
    """A module whose tokens are trained, and which."""

    site: Site
    indices: list[int]


def find_tokens(
    model: nn.Module, config: Any, adapted: Sequence[Site], whole: Sequence[Site]
) -> list[TokenSite]:
    """The modules whose tokens a config trains; beside the input embeddings, all that have their weight.

    Args:
        model: the base model.
        config: a method's config; `trainable_token_indices` says which tokens, where the method has it.
        adapted: the modules that the adapter is on.
        whole: those that it trains whole.

    Raises:
        AdapterError: where there are no such modules or tokens, or a module is trained in another way already.
    """
    given = getattr(config, FIELD, None)
    if given is None:
        return []
    found = list(_named(model, given) if isinstance(given, Mapping) else _of_embedding(model, given))
    embedding = embedding_layers(model)[0]
    leader = next((item for item in found if item.site.module is embedding), None)
    sharing = sharing_sites(model)
    if leader is not None:
        taken = [site.module for site in (*whole, *(item.site for item in found))]
        others = [site for site in sharing if not any(site.module is module for module in taken)]
        found += [TokenSite(site, leader.indices) for site in others]
    for item in found:
        _check(item, adapted, whole)
    if config.ensure_weight_tying:
        _check_alike(
            leader, [item for item in found if any(item.site.module is each.module for each in sharing)]
        )
    return found


def wrap_tokens(sites: Sequence[TokenSite], adapter_name: str, options: AddOptions, *, enabled: bool) -> None:
    """Puts an adapter's rows on modules, in a wrapper around each."""
    for site, indices in sites:
        wrapper = site.module
        if not isinstance(wrapper, TrainableTokensWrapper):
            wrapper = TrainableTokensWrapper(site.module).train(site.module.training)
            setattr(site.parent, site.child, wrapper)
        layer = wrapper.token_adapter
        layer.add(adapter_name, indices, equal=True, autocast=options.autocast_adapter_dtype)
        if not enabled:
            layer.enable_adapters(False)
        if options.low_cpu_mem_usage:
            to_meta(layer, adapter_name)


def tie_tokens(model: nn.Module, adapter_name: str) -> None:
    """Makes an adapter's rows one where the weight is: those of modules that have the input embeddings' weight.

    A module that the model has under several names gets its layer under all of them.
    """
    outer = {innermost(site.module): site.module for site in walk(model) if token_layer(site.module)}
    for site in walk(model, repeated=True):
        if site.module in outer:
            setattr(site.parent, site.child, outer[site.module])
    leader = token_layer(embedding_layers(model)[0])
    if leader is None or adapter_name not in leader.token_indices:
        return
    for site in sharing_sites(model):
        layer = token_layer(site.module)
        if layer and layer.token_indices.get(adapter_name) == leader.token_indices[adapter_name]:
            layer.tie(adapter_name, leader)


def token_layer(module: nn.Module | None) -> TrainableTokensLayer | None:
    """The layer on a module that trains tokens, if there is one."""
    layers = () if module is None else stack(module)
    return next((layer for layer in layers if isinstance(layer, TrainableTokensLayer)), None)


def check_tokens(field: str, site: Site, indices: Sequence[int]) -> None:
    """Refuses tokens that a module has no row for."""
    module: Any = innermost(site.module)
    size = module.num_embeddings if isinstance(module, nn.Embedding) else module.out_features
    if max(indices) >= size:
        raise AdapterError(
            f"{field}: there is no token {max(indices)}; the vocabulary of {site.name} is {size} (0 to {size - 1})"
        )


def _of_embedding(model: nn.Module, indices: list[int]) -> Iterator[TokenSite]:
    """The input embeddings."""
    site = embedding_site(model)
    if site is None:
        raise AdapterError(
            f"{FIELD}: {type(model).__name__} does not say which module holds its input embeddings; "
            "write {MODULE: [IDS]}"
        )
    yield TokenSite(site, indices)


def _named(model: nn.Module, indices: Mapping[str, list[int]]) -> Iterator[TokenSite]:
    """As in PEFT, the modules whose name ends with a key; each once, whatever its names."""
    sites = list(walk(model, repeated=True))
    seen: dict[nn.Module, str] = {}
    for name, tokens in indices.items():
        matched = [site for site in sites if site.name.endswith(name)]
        if not matched:
            raise AdapterError(
                f"{FIELD}: {name!r} matches no module{similar(name, [site.name for site in sites])}"
            )
        for site in matched:
            if seen.setdefault(site.module, name) != name:
                raise AdapterError(f"{FIELD}: {name!r} and {seen[site.module]!r} both name {site.name}")
            yield TokenSite(site, tokens)


def _check(item: TokenSite, adapted: Sequence[Site], whole: Sequence[Site]) -> None:
    """Refuses modules that have no tokens, or are trained in another way already."""
    (site, indices), module = item, item.site.module
    name = site.name
    if isinstance(module, ModulesToSaveWrapper) or any(
        f"{name}.".startswith(f"{each.name}.") for each in whole
    ):
        raise AdapterError(f"{FIELD}: {name} is trained whole (modules_to_save); train it in one of the ways")
    if isinstance(module, AdapterLayer) or any(module is each.module for each in adapted):
        raise AdapterError(f"{FIELD}: {name} has an adapter (target_modules); train it in one of the ways")
    base: Any = innermost(module)
    if not isinstance(base, tuple(KINDS)):
        raise AdapterError(f"{FIELD}: {name} is a {type(base).__name__}, which has no rows for tokens")
    if getattr(base, "max_norm", None) is not None:
        raise AdapterError(f"{FIELD}: {name} is an embedding with max_norm")
    check_tokens(FIELD, site, indices)


def _check_alike(leader: TokenSite | None, tied: Sequence[TokenSite]) -> None:
    for site, indices in tied:
        if leader is None or indices != leader.indices:
            raise AdapterError(
                f"ensure_weight_tying: {site.name} has the input embeddings' weight, and must have the same tokens; "
                f"name the same for both in {FIELD}"
            )
