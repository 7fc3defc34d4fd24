"""What the data tests share: files, tokenizers, and chat templates of ours in the manner of other families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftcli.recipe.schema import Recipe

# What must come through unharmed: Arabic, Hebrew with direction marks, Devanagari conjuncts, a family joined by
# ZWJ, a flag, combining marks in both orders, CJK beyond the BMP, NUL and other controls.
TEXTS = [
    "اكتب قصيدة عن البحر",
    "שלום \u200f(123)\u200e",
    "क्षत्रिय ज्ञान",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "e\u0301 a\u0323\u0307 \u0307\u0323a",
    "𠮷野家 ｶﾞ",
    "nul \x00 bell \x07 line\u2028separator\u0085next",
    "tab\tcarriage\rreturn\nfeed",
]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (  # as Llama 3
        "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' }}"
        "{{ m['content'] | trim + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
    ),
    "inst": (  # as Mistral
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
    ),
    "turns": (  # as Gemma
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
    ),
    "bars": (  # as Zephyr
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "marked": (  # says itself what is generated
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "spaced": (  # the prompt ends in a space, which byte-level tokenizers merge with the first word
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
}

# What ends an assistant's turn in each.
ENDINGS = {
    "chatml": "<|im_end|>",
    "headers": "<|eot|>",
    "inst": "</s>",
    "turns": "<end_of_turn>",
    "bars": "</s>",
    "marked": "<|im_end|>",
    "spaced": "</s>",
}

# As Qwen 3: only turns after the last question keep their reasoning.
STRIPPING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and loop.index0 < ns.last %}"
    "{% set said = said.split('</think>')[-1].strip() %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<turn>",
]


def merging_tokenizer(chat_template: str | None = None) -> Any:
    """A byte-level BPE with merges: words come with the space before them, line feeds come in pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*_SPECIAL, "<end_of_turn>"],
    )
    words = "assistant user system model: hello there, good morning to you; what is it? yes no 12 24 "
    # Short words, often: every one becomes a token together with the space before it.
    tokenizer.train_from_iterator([words * 4, "a\n\nb\n\nc\n\n  \n\n"] * 8, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    fast.chat_template = chat_template
    return fast


def prefixing_tokenizer() -> Any:
    """In the manner of Llama 2: `<s>` before plain text, and a space before the first word of any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", "▁", "\n", *map(chr, range(33, 127))]
    vocabulary = {letter: at for at, letter in enumerate([*letters, "▁a", "▁b", "ab"])}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_with(**data: Any) -> Recipe:
    """A recipe that differs in its `data` only."""
    return Recipe.model_validate(
        {
            "base_model": "base",
            "task_type": "CAUSAL_LM",
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "unused.jsonl"}, **data},
            "training": {"output_dir": "out"},
        }
    )
