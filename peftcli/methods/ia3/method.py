"""(IA)³ as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, LayerMethod, bare, settle_fan_in_fan_out
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.patterns import Expression
from peftcli.errors import AdapterError
from peftcli.methods.ia3.combine import add_weighted_adapter
from peftcli.methods.ia3.config import FEED_FORWARD, TARGETS, IA3Config
from peftcli.methods.ia3.layer import ConvNd, IA3Layer, Linear


class IA3Method(LayerMethod):
    """(IA)³."""

    prefix = "ia3_"
    layer = IA3Layer
    operations: ClassVar = {"add_weighted_adapter": add_weighted_adapter}
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear, nn.Conv2d: ConvNd, nn.Conv3d: ConvNd}

    def resolve(self, sites: Sequence[Site], config: IA3Config, others: Sequence[Any], strict: bool) -> None:  # noqa: ARG002
        """Finds the feed-forward layers where the config does not name them."""
        names = [site.name for site in sites]
        if config.feedforward_modules is None:
            config.feedforward_modules = self._default(names, config)
        entries = config.feedforward_modules
        for entry in [entries] if isinstance(entries, str) else entries:
            if not any(is_named([entry] if isinstance(entries, list) else entry, name) for name in names):
                complain(
                    f"feedforward_modules: {entry!r} matches no adapted module{similar(entry, names)}",
                    strict=strict,
                )
        settle_fan_in_fan_out(sites, config)

    def _default(self, names: Sequence[str], config: IA3Config) -> list[str]:
        """The feed-forward layers that an architecture's default targets hold; PEFT's tables name them."""
        for model_type, targets in TARGETS.items():
            if config.target_modules == sorted(targets):
                return [
                    name for name in FEED_FORWARD[model_type] if any(is_named([name], each) for each in names)
                ]
        raise AdapterError(
            "feedforward_modules is missing: say which of target_modules are feed-forward layers, or [] for none"
        )

    def wrap(self, site: Site, config: IA3Config, tuner: Any) -> AdapterLayer:  # noqa: ARG002
        """A layer of the kind that the module asks for, on its input or its output."""
        kind: Any = self.kind(bare(site.module))
        layer: AdapterLayer = kind(
            site.module, is_feedforward=is_named(config.feedforward_modules or [], site.name)
        )
        return layer

    def add(
        self, layer: AdapterLayer, site: Site, adapter_name: str, config: IA3Config, options: AddOptions
    ) -> None:
        """Makes a new adapter."""
        assert isinstance(layer, IA3Layer)
        if layer.is_feedforward != is_named(config.feedforward_modules or [], site.name):
            raise AdapterError(
                f"{site.name} is a feed-forward layer to one adapter and not to another; they cannot share it"
            )
        layer.add(adapter_name, ones=config.init_ia3_weights, autocast=options.autocast_adapter_dtype)


def is_named(modules: list[str] | str, name: str) -> bool:
    """PEFT's rule: an expression fits the whole name, a listed name its end."""
    if isinstance(modules, str):
        return Expression(modules).fullmatch(name) is not None
    return any(name.endswith(module) for module in modules)
