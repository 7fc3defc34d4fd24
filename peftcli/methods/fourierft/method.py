"""FourierFT as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.additive import features
from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, LayerMethod, bare, settle_fan_in_fan_out
from peftcli.adapters.naming import complain, similar
from peftcli.adapters.patterns import by_pattern, matches
from peftcli.errors import AdapterError
from peftcli.methods.fourierft.config import FourierFTConfig
from peftcli.methods.fourierft.layer import FourierFTLinear


class FourierFTMethod(LayerMethod):
    """FourierFT."""

    prefix = "fourierft_"
    layer = FourierFTLinear
    kinds: ClassVar = {nn.Linear: FourierFTLinear, Conv1D: FourierFTLinear}

    def resolve(
        self,
        sites: Sequence[Site],
        config: FourierFTConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,
    ) -> None:
        """Checks n_frequency_pattern, and that layers have as many entries; sets fan_in_fan_out."""
        settle_fan_in_fan_out(sites, config)
        names = [site.name for site in sites]
        for key in config.n_frequency_pattern:
            if not any(matches(key, name) for name in names):
                complain(
                    f"n_frequency_pattern: {key!r} matches no adapted module{similar(key, names)}",
                    strict=strict,
                )
        for site in sites:
            inputs, outputs = features(bare(site.module))
            if (count := _count(config, site)) > inputs * outputs:
                raise AdapterError(
                    f"{site.name} has {inputs} × {outputs} entries, which n_frequency {count} is more than; lower it, "
                    "or give the layer its own in n_frequency_pattern"
                )

    def add(
        self,
        layer: AdapterLayer,
        site: Site,
        adapter_name: str,
        config: FourierFTConfig,
        options: AddOptions,
    ) -> None:
        """Makes a new adapter with as many entries as its name has."""
        assert isinstance(layer, FourierFTLinear)
        layer.add(adapter_name, _count(config, site), config, autocast=options.autocast_adapter_dtype)


def _count(config: FourierFTConfig, site: Site) -> int:
    return int(by_pattern(config.n_frequency_pattern, site.name, config.n_frequency))
