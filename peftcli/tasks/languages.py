"""Languages of translation models: the codes that a tokenizer puts beside texts, and what the decoder starts with.

The tokenizers of mBART, M2M100, NLLB and their kin write a code before or after each text. Generation must begin as
training did: with the code as the first token written (mBART-50, M2M100, NLLB), or as the one that the decoder starts
from, where the model's own shift of labels puts it there (mBART).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcli.errors import RecipeError, did_you_mean


def has_languages(tokenizer: Any) -> bool:
    """Whether the tokenizer writes the languages of texts."""
    return hasattr(tokenizer, "src_lang")


def use_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Sets the languages of a tokenizer; None leaves its own.

    Raises:
        RecipeError: it knows no languages, or not this one.
    """
    for name, key, language in (("src_lang", "source_lang", source), ("tgt_lang", "target_lang", target)):
        if language is None:
            continue
        if not has_languages(tokenizer):
            kind = type(tokenizer).__name__
            raise RecipeError(f"task.{key}: a {kind} writes no languages; say it in data.source_prefix")
        known = getattr(tokenizer, "lang_code_to_id", None) or tokenizer.all_special_tokens
        if language not in known:
            raise RecipeError(
                f"task.{key}: the tokenizer knows no {language!r}; {did_you_mean(language, known)}"
            )
        setattr(tokenizer, name, language)


def require_target(tokenizer: Any) -> None:
    """Refuse a tokenizer that would write some language beside the targets, nobody having said which.

    Raises:
        RecipeError: naming the setting.
    """
    if has_languages(tokenizer) and tokenizer.tgt_lang is None:
        kind = type(tokenizer).__name__
        raise RecipeError(f"task.target_lang: a {kind} writes a code for the targets' language; say which")


def language_settings(base: nn.Module, tokenizer: Any) -> dict[str, int]:
    """What a GenerationConfig must say, so that the target's language is written; nothing where there is none."""
    if getattr(tokenizer, "tgt_lang", None) is None:
        return {}
    labels: list[int] = tokenizer(text_target="")["input_ids"]
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    codes = [token for token in labels if token not in others]
    if not codes:
        return {}
    shift: Any = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    starts = labels[0] != codes[0] and shift is not None
    if starts and int(shift(torch.tensor([labels]))[0, 0]) == codes[0]:
        return {"decoder_start_token_id": codes[0]}
    return {"forced_bos_token_id": codes[0]}
