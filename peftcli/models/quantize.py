"""Loading a base in fewer bits: the recipe's `quantization`, which holds BitsAndBytesConfig's fields."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from peftcli.errors import ModelError, did_you_mean


def quantization_config(fields: dict[str, Any]) -> Any:
    """The `BitsAndBytesConfig` that the fields describe.

    Raises:
        ModelError: an unknown field, a wrong value, or a machine that cannot load a base so.
    """
    import torch
    from transformers import BitsAndBytesConfig

    known = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for name in fields:
        if name not in known:
            raise ModelError(f"quantization has no field {name!r}; {did_you_mean(name, known)}")
    try:
        config = BitsAndBytesConfig(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"quantization: {error}") from error
    if not (config.load_in_4bit or config.load_in_8bit):
        raise ModelError("quantization asks for nothing; set load_in_4bit or load_in_8bit to true")
    if find_spec("bitsandbytes") is None:
        raise ModelError("quantization needs bitsandbytes; run `pip install 'peftcli[quantization]'`")
    if not torch.accelerator.is_available():
        raise ModelError(
            "quantization needs an accelerator such as a CUDA GPU; on a CPU leave `quantization` out"
        )
    return config
