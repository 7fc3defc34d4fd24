"""Bases and adapters to merge, and merging as most tests want it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from peftcli.run.lock import Lock, write_lock
from peftcli.run.merge import merge
from tests.methods.models import llama
from tests.run.adapters import saved

LAYERS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def merged(folder: Path, output: Path, **options):
    return merge(folder, output, **{"say": lambda line: None, "verify": True} | options)


def bases(folder: Path, model=None) -> Path:
    """A folder with a base; a tiny Llama where none is given."""
    torch.manual_seed(0)
    model = llama() if model is None else model
    model.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, load=AutoModelForCausalLM, **config) -> Path:
    return saved(folder, load.from_pretrained(base), base_model_name_or_path=str(base), **config)


def lock(folder: Path, base: Path, **recipe) -> None:
    full = {
        "base_model": str(base),
        "task_type": "CAUSAL_LM",
        "adapter": {"peft_type": "LORA"},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "training": {"output_dir": "out"},
        **recipe,
    }
    template = full.pop("chat_template", None)
    write_lock(folder, Lock(full, {"name": str(base)}, {"format": "chat"}, {}, template))
