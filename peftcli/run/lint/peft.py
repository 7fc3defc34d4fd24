"""PEFT itself: `PeftModel.from_pretrained`, release 0.21."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from peftcli.adapters.config import PREFIX, PeftConfig
from peftcli.registry import METHODS, resolve
from peftcli.run.adapter import Adapter
from peftcli.run.lint.base import base_findings, gguf_file, servable
from peftcli.run.lint.finding import Finding, Target
from peftcli.run.lint.lora import lora_findings

# The release whose fields the configs have.
KNOWN = (0, 21)
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def findings(adapter: Adapter) -> Iterator[Finding]:
    """What PEFT ignores, and with it what the adapter was trained to do."""
    values = adapter.values
    kind: type[PeftConfig] = resolve(METHODS, values["peft_type"], what="peft_type")
    known = {item.name for item in fields(kind)} | set(kind.DEFERRED)
    for name in sorted(values.keys() - known):
        yield Finding(name, "PEFT 0.21 does not know it, and ignores it", "update PEFT", is_error=False)
    version = re.match(r"(\d{1,6})\.(\d{1,6})", str(values.get("peft_version") or ""))
    if version and (int(version[1]), int(version[2])) > KNOWN:
        yield Finding(
            "peft_version",
            f"it was written by PEFT {version[0]}",
            "use that release or a later one",
            is_error=False,
        )
    if values["peft_type"] == "LORA":
        yield from (each for each in lora_findings(adapter, "PEFT") if each.where != "init_lora_weights")
    yield from _start_findings(str(values.get("init_lora_weights")))
    if not kind.is_prompt_learning:
        odd = [key for key in adapter.heads if not key.startswith("base_model.") or ".default." in key]
        if odd:
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            advice = f"name it {PREFIX}LAYER.TENSOR, without the adapter's name in it"
            yield Finding(f"{odd[0]}{more}", "is no key that PEFT loads; it would pass it over", advice)
    yield from base_findings(adapter, "PEFT", takes_gguf=True)


def _start_findings(start: str) -> Iterator[Finding]:
    """PEFT makes an adapter as for training before it loads its tensors: the base is changed as then, or should be."""
    field, advice = "init_lora_weights", "save the adapter with path_initial_model_for_weight_conversion"
    if start.startswith("pissa_niter_"):
        message = "PEFT takes a part out of the base again by a random decomposition, and gets another one"
        yield Finding(field, message, advice, is_error=False)
    elif start.startswith("corda"):
        yield Finding(field, "PEFT loads it only after preprocess_corda with the same data", advice)
    elif start == "lora_ga":
        yield Finding(field, "PEFT loads it for the base as it was, which training changed", advice)


def commands(adapter: Adapter) -> list[str]:
    """A line of Python."""
    auto_class = CLASSES.get(str(adapter.values.get("task_type"))) or _own_class(adapter) or "AutoModel"
    gguf = gguf_file(adapter)
    base = f"{str(gguf.parent)!r}, gguf_file={gguf.name!r}" if gguf else repr(servable(adapter))
    folder = str(adapter.folder.resolve())
    imports = f"from peft import PeftModel; from transformers import {auto_class}"
    return [f"{imports}; model = PeftModel.from_pretrained({auto_class}.from_pretrained({base}), {folder!r})"]


def _own_class(adapter: Adapter) -> str | None:
    mapping: Any = adapter.values.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return name if isinstance(name, str) and name.isidentifier() else None


TARGET = Target("PEFT", findings, commands)
