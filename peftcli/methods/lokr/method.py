"""LoKr as the engine sees it."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from peftcli.adapters.lycoris import LycorisMethod
from peftcli.methods.lokr.layer import LoKrLayer


class LoKrMethod(LycorisMethod):
    """LoKr."""

    prefix = "lokr_"
    layer = LoKrLayer
    kinds: ClassVar = dict.fromkeys((nn.Linear, nn.Conv2d, nn.Conv1d), LoKrLayer)
