"""LoHa as the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from peftcli.adapters.lycoris import LycorisMethod
from peftcli.adapters.updates import Dense, Update, affordable
from peftcli.methods.loha.config import LoHaConfig
from peftcli.methods.loha.layer import LoHaLayer, hadamard


class LoHaMethod(LycorisMethod):
    """LoHa."""

    prefix = "hada_"
    layer = LoHaLayer
    kinds: ClassVar = dict.fromkeys((nn.Linear, nn.Conv2d, nn.Conv1d), LoHaLayer)

    def update(self, tensors: Mapping[str, torch.Tensor], config: LoHaConfig, name: str) -> Update | None:
        """The product of entries, scaled."""
        a, b, *others = (tensors[part] for part in LoHaLayer.adapter_layer_names if part in tensors)
        cores = others[2:]
        outputs = a.shape[1 if cores else 0]
        if not affordable(outputs, b.shape[1], *(cores[0].shape[2:] if cores else ())):
            return None
        return Dense(hadamard(a, b, *others).flatten(1) * self.scaling(config, name))
