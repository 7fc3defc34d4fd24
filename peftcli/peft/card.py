"""README.md beside an adapter: what the Hub shows of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.config import PeftConfig, TaskType
from peftcli.files import write_text

CARD_NAME = "README.md"
_PIPELINES = {TaskType.CAUSAL_LM: "text-generation"}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says.

    Attributes:
        config: the adapter's.
        base: the base model's name.
        tags: beside the method's and the base's.
        quantization: the base's, where it was quantized.
    """

    config: PeftConfig
    base: str | None
    tags: Iterable[str] = ()
    quantization: Any = None


def write_card(folder: Path, facts: CardFacts) -> None:
    """Writes README.md, or brings the metadata of one that is there up to date, leaving its text as it is."""
    from huggingface_hub import ModelCard

    path = folder / CARD_NAME
    card: Any = (
        ModelCard.load(path) if path.is_file() else ModelCard(f"---\nlibrary_name: peft\n---\n{_text(facts)}")
    )
    method = str(facts.config.peft_type).lower()
    tags = {*(card.data.tags or ()), *facts.tags, "peft", method}
    card.data["library_name"] = "peft"  # also in a card that was there
    if facts.base and _is_public(facts.base):
        card.data["base_model"] = facts.base
        tags.add(f"base_model:adapter:{facts.base}")
    if facts.config.task_type in _PIPELINES and not card.data.pipeline_tag:
        card.data["pipeline_tag"] = _PIPELINES[facts.config.task_type]
    card.data["tags"] = sorted(tags)
    write_text(path, str(card))


def _is_public(base: str) -> bool:
    """Whether others may have a base of this name: the Hub refuses a card that names a folder of this machine."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) is not None and not Path(base).exists()


def _text(facts: CardFacts) -> str:
    base = f"`{facts.base}`" if facts.base else "a base model"
    parts = [
        f"# A {facts.config.peft_type} adapter for {base}",
        "## How to use it",
        _usage(facts),
    ]
    if facts.quantization is not None:
        fields = "\n".join(f"- {name}: {value}" for name, value in facts.quantization.items())
        parts.append(f"## Training\n\nThe base was quantized:\n\n{fields}")
    return "\n\n".join(parts) + "\n"


def _usage(facts: CardFacts) -> str:
    task = facts.config.task_type
    classes = {
        TaskType.CAUSAL_LM: "AutoPeftModelForCausalLM",
        TaskType.SEQ_2_SEQ_LM: "AutoPeftModelForSeq2SeqLM",
        TaskType.SEQ_CLS: "AutoPeftModelForSequenceClassification",
        TaskType.TOKEN_CLS: "AutoPeftModelForTokenClassification",
        TaskType.QUESTION_ANS: "AutoPeftModelForQuestionAnswering",
        TaskType.FEATURE_EXTRACTION: "AutoPeftModelForFeatureExtraction",
        None: "AutoPeftModel",
    }
    return f"""\
```python
from peft import {classes[task]}

model = {classes[task]}.from_pretrained("PATH_OR_REPOSITORY")
```"""
