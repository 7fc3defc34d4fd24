"""The file that diffusers reads LoRA weights from: `pipe.load_lora_weights(folder)`.

Its tensors are those of the adapter's file, named from the pipeline's part on (`unet.…lora_A.weight`), and what its
head says of each part are the arguments of PEFT's `LoraConfig`, as `save_lora_weights` of diffusers writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.config import CONFIG_NAME, PREFIX, read_json
from peftcli.files import write_tensors
from peftcli.peft.storage import load_peft_weights

FILE = "pytorch_lora_weights.safetensors"
_KEY = "lora_adapter_metadata"
_PARTS = ("unet", "text_encoder")
_DOWN = ".lora_A.weight"


def write_diffusers_lora(folder: Path) -> None:
    """Writes the file beside the adapter's own two, which are read for it.

    Raises:
        AdapterError: these cannot be read.
        OSError: it cannot be written.
    """
    config = read_json(folder / CONFIG_NAME)
    weights = {key.removeprefix(PREFIX): tensor for key, tensor in load_peft_weights(folder).items()}
    named: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for part in _PARTS:
        own = {key.removeprefix(f"{part}."): key for key in weights if key.startswith(f"{part}.")}
        if not own:
            continue
        # Text encoders of older releases of Transformers have one module more around their layers, and so have
        # these names in files; diffusers takes it off where it is not there.
        inner = (
            "text_model." if part == "text_encoder" and not any("text_model." in key for key in own) else ""
        )
        named |= {f"{part}.{inner}{key}": weights[whole] for key, whole in own.items()}
        targets = [key.removesuffix(_DOWN) for key in own if key.endswith(_DOWN)]
        about |= {f"{part}.{name}": value for name, value in _lora_config(config, part, targets).items()}
    head = {_KEY: json.dumps(about, indent=2, sort_keys=True)}
    write_tensors(folder / FILE, {key: tensor.contiguous() for key, tensor in named.items()}, head)


def _lora_config(config: Mapping[str, Any], part: str, targets: Sequence[str]) -> dict[str, Any]:
    """The arguments of LoraConfig for one part; its layers are named one by one, whatever the adapter's config says."""
    kept = {
        name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "use_rslora") if name in config
    }
    patterns = {
        name: _patterns(config[name], part, targets)
        for name in ("rank_pattern", "alpha_pattern")
        if config.get(name)
    }
    return {"peft_type": "LORA", "bias": "none", **kept, **patterns, "target_modules": sorted(targets)}


def _patterns(patterns: Mapping[str, Any], part: str, targets: Sequence[str]) -> dict[str, Any]:
    """Those that mean layers of the part, without its name."""
    return {
        pattern.removeprefix(f"{part}."): value
        for pattern, value in patterns.items()
        if any(re.match(rf"(.*\.)?({pattern})$", f"{part}.{target}") for target in targets)
    }
