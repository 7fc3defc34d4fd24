"""Trainable tokens as the engine sees them; their layers are shared with other methods' `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, LayerMethod, bare
from peftcli.adapters.token_sites import check_tokens
from peftcli.adapters.tokens import KINDS, TrainableTokensLayer
from peftcli.adapters.tying import embedding_site, sharing_sites
from peftcli.errors import AdapterError
from peftcli.methods.trainable_tokens.config import TrainableTokensConfig


class TrainableTokensMethod(LayerMethod):
    """Trainable tokens."""

    prefix = "trainable_tokens_"
    layer = TrainableTokensLayer
    kinds: ClassVar = KINDS

    def aim(self, config: TrainableTokensConfig, model: nn.Module) -> None:
        """The input embeddings, by their whole name."""
        if config.target_modules is None:
            site = embedding_site(model)
            if site is None:
                raise AdapterError(
                    f"target_modules is missing, and {type(model).__name__} does not say which module holds its "
                    "input embeddings; name it"
                )
            config.target_modules = site.name

    def problem(self, site: Site, config: TrainableTokensConfig, model: nn.Module) -> str:
        """Why this module cannot be adapted, or nothing."""
        if getattr(bare(site.module), "max_norm", None) is not None:
            return f"{site.name} is an embedding with max_norm"
        return super().problem(site, config, model)

    def companions(
        self,
        sites: Sequence[Site],
        config: TrainableTokensConfig,  # noqa: ARG002  (the protocol's signature)
        model: nn.Module,
    ) -> list[Site]:
        """With the input embeddings, what has their weight, such as a tied head."""
        embedding = embedding_site(model)
        if embedding is None or not any(site.module is embedding.module for site in sites):
            return []
        named = {site.name for site in sites}
        return [site for site in sharing_sites(model) if site.name not in named]

    def resolve(
        self,
        sites: Sequence[Site],
        config: TrainableTokensConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,  # noqa: ARG002
    ) -> None:
        """Every module must have a row for every token."""
        for site in sites:
            check_tokens("token_indices", site, config.token_indices)

    def add(
        self,
        layer: AdapterLayer,
        site: Site,  # noqa: ARG002
        adapter_name: str,
        config: TrainableTokensConfig,
        options: AddOptions,
    ) -> None:
        """Makes a new adapter."""
        assert isinstance(layer, TrainableTokensLayer)
        layer.add(
            adapter_name,
            config.token_indices,
            equal=config.init_weights or not options.initialise,
            autocast=options.autocast_adapter_dtype,
        )
