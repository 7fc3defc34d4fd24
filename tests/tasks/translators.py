"""Tiny models of the families that translate, each with its own tokenizer over a few words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from peftcli.recipe.schema import Recipe

ENGLISH = [
    *("one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("red", "blue", "green", "black", "cat", "dog", "bird", "fish"),
]
GERMAN = [
    *("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht"),
    *("rot", "blau", "grün", "schwarz", "katze", "hund", "vogel", "fisch"),
]
WORDS = [*ENGLISH, *GERMAN]


def word_tokenizer(folder: Path) -> Any:
    """A token a word, and `</s>` at the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=48,
    )
    made.save_pretrained(folder)
    return made


def scored_words() -> list[tuple[str, float]]:
    return [(f"▁{word}", -float(at)) for at, word in enumerate(WORDS)]


def mbart_tokenizer(folder: Path) -> Any:
    """Languages behind the text; the targets' is the token that the decoder starts from."""
    from transformers import MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    made = MBartTokenizer(vocab=[*special, ("▁", -99.0), *scored_words(), *codes, ("<mask>", 0.0)])
    made.save_pretrained(folder)
    return made


def mbart50_tokenizer(folder: Path) -> Any:
    """Languages before the text."""
    from transformers import MBart50Tokenizer
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    made = MBart50Tokenizer(vocab=[*special, ("▁", -99.0), *scored_words(), *codes, ("<mask>", 0.0)])
    made.save_pretrained(folder)
    return made


def nllb_tokenizer(folder: Path) -> Any:
    """Languages before the text, for the model of M2M100."""
    from transformers import NllbTokenizer

    letters = sorted({"▁", *"".join(WORDS)})
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    made = NllbTokenizer(vocab={token: at for at, token in enumerate(tokens)}, merges=[])
    made.save_pretrained(folder)
    return made


def spm_file(folder: Path) -> Path:
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text(
        "\n".join(" ".join(WORDS[at : at + 4]) for at in range(len(WORDS) - 3)), encoding="utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "pieces"),
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "pieces.model"


def pieces(folder: Path) -> list[str]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    return [model.id_to_piece(at) for at in range(3, model.get_piece_size())]


def vocabulary_file(folder: Path, tokens: list[str]) -> str:
    path = folder / "vocabulary.json"
    path.write_text(json.dumps({token: at for at, token in enumerate(tokens)}), encoding="utf-8")
    return str(path)


def m2m100_tokenizer(folder: Path) -> Any:
    """Languages before the text, under names of their own: `__de__`."""
    from transformers import M2M100Tokenizer
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    spm = spm_file(folder)
    vocabulary = vocabulary_file(folder, ["<s>", "<pad>", "</s>", "<unk>", *pieces(folder)])
    codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    made = M2M100Tokenizer(vocabulary, str(spm), additional_special_tokens=codes)
    made.save_pretrained(folder)
    return made


def marian_tokenizer(folder: Path) -> Any:
    """No languages: each model is for one pair of them."""
    from transformers import MarianTokenizer

    spm = str(spm_file(folder))
    vocabulary = vocabulary_file(folder, ["</s>", "<unk>", *pieces(folder), "<pad>"])
    made = MarianTokenizer(spm, spm, vocabulary, source_lang="en", target_lang="de")
    made.save_pretrained(folder)
    return made


def tiny(name: str, tokenizer: Any, **settings: Any) -> Any:
    """A random model of a class of Transformers, whose special tokens are the tokenizer's."""
    import transformers

    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name}Config")
    sizes: dict[str, Any] = {"d_model": 32, "max_position_embeddings": 64, "vocab_size": len(tokenizer)}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_ffn_dim": 32, f"{half}_attention_heads": 2}
    tokens = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    config = config_class(**(sizes | tokens | {"forced_eos_token_id": None, "init_std": 0.2} | settings))
    classes = {"Marian": "MarianMTModel"}
    return getattr(transformers, classes.get(name, f"{name}ForConditionalGeneration"))(config).eval()


def bart(folder: Path, **settings: Any) -> Any:
    tokenizer = word_tokenizer(folder)
    return tiny("Bart", tokenizer, decoder_start_token_id=1, **settings), tokenizer


def mbart(folder: Path) -> Any:
    tokenizer = mbart_tokenizer(folder)
    return tiny("MBart", tokenizer), tokenizer


def mbart50(folder: Path) -> Any:
    tokenizer = mbart50_tokenizer(folder)
    return tiny("MBart", tokenizer, decoder_start_token_id=2), tokenizer


def m2m100(folder: Path) -> Any:
    tokenizer = m2m100_tokenizer(folder)
    # The codes stand behind the vocabulary, and eight empty places behind them.
    size = tokenizer.encoder_size + len(tokenizer.lang_code_to_id) + 8
    return tiny("M2M100", tokenizer, decoder_start_token_id=2, vocab_size=size), tokenizer


def nllb(folder: Path) -> Any:
    tokenizer = nllb_tokenizer(folder)
    return tiny("M2M100", tokenizer, decoder_start_token_id=2), tokenizer


def marian(folder: Path) -> Any:
    tokenizer = marian_tokenizer(folder)
    start = {"decoder_start_token_id": tokenizer.pad_token_id, "decoder_vocab_size": len(tokenizer)}
    return tiny("Marian", tokenizer, **start), tokenizer


def pegasus(folder: Path) -> Any:
    tokenizer = word_tokenizer(folder)
    return tiny("Pegasus", tokenizer, decoder_start_token_id=0), tokenizer


def t5(folder: Path, name: str = "T5", **settings: Any) -> Any:
    """Relative positions; the decoder starts with padding."""
    import transformers

    tokenizer = word_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 8}
    tokens = {"vocab_size": len(tokenizer), "decoder_start_token_id": 0, "dropout_rate": 0.0}
    config = getattr(transformers, f"{name}Config")(**(sizes | tokens | settings))
    return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval(), tokenizer


def mt5(folder: Path) -> Any:
    return t5(folder, "MT5")


# Makers of (model, tokenizer), with the languages that the recipe must say.
FAMILIES: dict[str, tuple[Any, dict[str, str]]] = {
    "t5": (t5, {}),
    "mt5": (mt5, {}),
    "bart": (bart, {}),
    "pegasus": (pegasus, {}),
    "marian": (marian, {}),
    "mbart": (mbart, {"source_lang": "en_XX", "target_lang": "de_DE"}),
    "mbart50": (mbart50, {"source_lang": "en_XX", "target_lang": "de_DE"}),
    "m2m100": (m2m100, {"source_lang": "en", "target_lang": "de"}),
    "nllb": (nllb, {"source_lang": "eng_Latn", "target_lang": "deu_Latn"}),
}


def recipe_of(base: Any = "base", **sections: Any) -> Recipe:
    """A recipe whose sections have what is given, too."""
    return Recipe.model_validate(
        {
            "base_model": str(base),
            "task_type": "SEQ_2_SEQ_LM",
            "task": sections.get("task", {}),
            "adapter": sections.get("adapter", {"peft_type": "LORA", "target_modules": "all-linear"}),
            "data": {"train": {"path": "unused.jsonl"}} | sections.get("data", {}),
            "training": {"output_dir": "out", "disable_tqdm": True} | sections.get("training", {}),
        }
    )


def taught_to_copy(model: Any, steps: int, learning_rate: float) -> Any:
    """The model after full training on sentences of up to five words, each to be written as it is read."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    places = torch.arange(6)
    model.train()
    for _ in range(steps):
        ends = torch.randint(2, 6, (32, 1), generator=generator)
        words = torch.rand(32, len(WORDS), generator=generator).argsort(1)[:, :6] + 3
        ids = torch.where(places < ends, words, torch.where(places == ends, 1, 0))
        mask = places <= ends
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=ids.where(mask, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of a rule that no copier knows: the same sentence, word by word, in the other language."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.sample(range(len(ENGLISH)), draw.randint(2, 5))
        rows.append(
            {"source": " ".join(ENGLISH[at] for at in words), "target": " ".join(GERMAN[at] for at in words)}
        )
    return rows
