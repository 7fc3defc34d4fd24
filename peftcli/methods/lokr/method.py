"""LoKr as the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from peftcli.adapters.lycoris import LycorisMethod
from peftcli.adapters.updates import Kronecker, Update, affordable
from peftcli.methods.lokr.config import LoKrConfig
from peftcli.methods.lokr.layer import LoKrLayer, matrices


class LoKrMethod(LycorisMethod):
    """LoKr."""

    prefix = "lokr_"
    layer = LoKrLayer
    kinds: ClassVar = dict.fromkeys((nn.Linear, nn.Conv2d, nn.Conv1d), LoKrLayer)

    def update(self, tensors: Mapping[str, torch.Tensor], config: LoKrConfig, name: str) -> Update | None:
        """The grid, scaled."""
        for factors in ("lokr_w1_", "lokr_w2_"):
            if not affordable(
                *(max(tensor.shape) for part, tensor in tensors.items() if part.startswith(factors))
            ):
                return None
        left_PQ, right = matrices(tensors)
        return Kronecker(left_PQ * self.scaling(config, name), right) if left_PQ.dim() == 2 else None
