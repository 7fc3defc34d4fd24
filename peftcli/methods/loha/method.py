"""LoHa as the engine sees it."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from peftcli.adapters.lycoris import LycorisMethod
from peftcli.methods.loha.layer import LoHaLayer


class LoHaMethod(LycorisMethod):
    """LoHa."""

    prefix = "hada_"
    layer = LoHaLayer
    kinds: ClassVar = dict.fromkeys((nn.Linear, nn.Conv2d, nn.Conv1d), LoHaLayer)
