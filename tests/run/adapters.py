"""Adapters in folders, as PEFT and peftcli write them, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.registry import METHODS, resolve
from tests.methods.cases import shake
from tests.methods.models import llama

WEIGHTS = "adapter_model.safetensors"


def trained(base: nn.Module, config: dict[str, Any], seed: int = 3) -> PeftModel:
    """An adapter on a base, moved away from its start."""
    settings = {"peft_type": "LORA", **config}
    kind = resolve(METHODS, settings.pop("peft_type"), what="peft_type")
    torch.manual_seed(seed)
    model = get_peft_model(base, kind(**settings))
    shake(model, seed)
    return model.eval()


def saved(folder: Path, base: nn.Module | None = None, seed: int = 3, **config: Any) -> Path:
    """A folder with a trained adapter, LoRA on a tiny Llama where nothing else is said."""
    torch.manual_seed(0)
    model = trained(
        llama() if base is None else base, {"base_model_name_or_path": "org/base", **config}, seed
    )
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **values: Any) -> Path:
    """The same folder with other fields in adapter_config.json; None takes a field away."""
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def change_tensors(folder: Path, change: Any) -> Path:
    """The same folder with what `change` makes of the tensors, by key."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)
    return folder
