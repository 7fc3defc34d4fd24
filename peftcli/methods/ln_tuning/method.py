"""LN tuning as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, Method, bare
from peftcli.adapters.weights import is_quantized
from peftcli.errors import AdapterError
from peftcli.methods.ln_tuning.config import LNTuningConfig
from peftcli.methods.ln_tuning.layer import LNTuningLayer


class LNTuningMethod(Method):
    """LN tuning."""

    prefix = "ln_tuning_"
    layer = LNTuningLayer

    def problem(self, site: Site, config: LNTuningConfig, model: nn.Module) -> str:  # noqa: ARG002
        """Why this module cannot be adapted, or nothing."""
        base = bare(site.module)
        kept = {key for key, _ in base.named_parameters(remove_duplicate=False)}
        if isinstance(base, nn.ModuleList | nn.ModuleDict):
            return f"{site.name} is a {type(base).__name__}, which is not called; name what is in it"
        if not kept:
            return f"{site.name} is a {type(base).__name__} without weights to train"
        if base.state_dict().keys() - kept:
            return f"{site.name} keeps statistics beside its weights, which LN_TUNING does not take"
        if any(is_quantized(module) for module in base.modules()):
            return f"{site.name} is quantized; it cannot be trained whole"
        return ""

    def resolve(
        self,
        sites: Sequence[Site],
        config: LNTuningConfig,  # noqa: ARG002
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,  # noqa: ARG002
    ) -> None:
        """A module inside one that is copied is copied already."""
        names = {site.name for site in sites}
        for name in names:
            outer, dot, _ = name.rpartition(".")
            while dot:
                if outer in names:
                    raise AdapterError(
                        f"target_modules: {name} is inside {outer}, which is trained whole; name one"
                    )
                outer, dot, _ = outer.rpartition(".")

    def wrap(self, site: Site, config: LNTuningConfig, tuner: Any) -> LNTuningLayer:  # noqa: ARG002
        """The same layer for every module."""
        return LNTuningLayer(site.module)

    def add(
        self,
        layer: AdapterLayer,
        site: Site,  # noqa: ARG002
        adapter_name: str,
        config: LNTuningConfig,  # noqa: ARG002
        options: AddOptions,
    ) -> None:
        """Makes a new adapter."""
        assert isinstance(layer, LNTuningLayer)
        layer.add(adapter_name, autocast=options.autocast_adapter_dtype)
