"""The starts by their names in `init_lora_weights`."""

from __future__ import annotations

from functools import cache
from typing import Any

from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.corda import Corda
from peftcli.methods.lora.eva import Eva
from peftcli.methods.lora.initial import Gaussian, Kaiming, Olora, Orthogonal, Pissa, Random, Start
from peftcli.methods.lora.loftq import Loftq
from peftcli.methods.lora.lora_ga import LoraGa

STRATEGIES: dict[bool | str, Start] = {
    True: Kaiming(),
    False: Random(),
    "gaussian": Gaussian(),
    "orthogonal": Orthogonal(),
    "olora": Olora(),
    "pissa": Pissa(),
    "eva": Eva(),
    "corda": Corda(),
    "lora_ga": LoraGa(),
}
_fast_pissa, _loftq = cache(Pissa), cache(Loftq)


def strategy_of(config: LoraConfig) -> Start:
    """The start that a config's `init_lora_weights` names; the config has checked it."""
    start = config.init_lora_weights
    if isinstance(start, str) and start.startswith("pissa_niter_"):
        return _fast_pissa(int(start.rpartition("_")[2]))
    if start == "loftq":
        settings: Any = config.loftq_config
        return _loftq(settings["loftq_bits"], settings["loftq_iter"])
    return STRATEGIES[start]
