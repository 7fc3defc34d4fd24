"""Fine-tune pretrained models with few parameters, from one recipe or from Python with PEFT's names.

The public names are looked up when they are first used: `import peftcli` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODEL, _STORAGE, _CONFIG = "peftcli.peft.model", "peftcli.peft.storage", "peftcli.adapters.config"

# public name -> the module that has it.
_PUBLIC = {
    "IA3Config": "peftcli.methods.ia3.config",
    "LoraConfig": "peftcli.methods.lora.config",
    "PeftConfig": _CONFIG,
    "PeftModel": _MODEL,
    "PeftModelForCausalLM": _MODEL,
    "PeftModelForFeatureExtraction": _MODEL,
    "PeftModelForQuestionAnswering": _MODEL,
    "PeftModelForSeq2SeqLM": _MODEL,
    "PeftModelForSequenceClassification": _MODEL,
    "PeftModelForTokenClassification": _MODEL,
    "PeftType": _CONFIG,
    "TaskType": _CONFIG,
    "get_peft_model": _MODEL,
    "get_peft_model_state_dict": _STORAGE,
    "inject_adapter_in_model": _MODEL,
    "load_peft_weights": _STORAGE,
    "set_peft_model_state_dict": _STORAGE,
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  (the table's keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'peftcli' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
