"""Tiny random bases, one for each task, in a folder with what turns inputs into tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import byte_tokenizer, tiny_llama


def llama(folder: Path) -> None:
    """A decoder, of bytes."""
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def tiny_mt5(vocabulary: int = 259, **settings: Any) -> Any:
    """A random mT5, the same at every call; the ids of special tokens are the byte tokenizer's."""
    import torch
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    tokens = {"pad_token_id": 256, "eos_token_id": 258, "decoder_start_token_id": 256}
    config = MT5Config(vocab_size=vocabulary, **(sizes | tokens | {"dropout_rate": 0.0} | settings))
    return MT5ForConditionalGeneration(config).eval()


def ending_tokenizer() -> Any:
    """The byte tokenizer, which ends each text as those of encoder-decoders do."""
    from tokenizers import processors

    tokenizer = byte_tokenizer(None)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    return tokenizer


def mt5(folder: Path) -> None:
    """An encoder and a decoder, of bytes."""
    tiny_mt5().save_pretrained(folder)
    ending_tokenizer().save_pretrained(folder)


def letter_tokenizer(words: Sequence[str] = ()) -> Any:
    """BERT's way of cutting words into pieces, here letters but for some words, and its special tokens around texts."""
    from transformers import BertTokenizer

    letters = [letter for letter in map(chr, range(33, 127)) if not letter.isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    return BertTokenizer(vocab=vocabulary, model_max_length=512)


def tiny_bert(vocabulary: int = 141, **settings: Any) -> Any:
    """A random BERT without a head, the same at every call."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(vocab_size=vocabulary, **(sizes | settings))).eval()


def bert(folder: Path) -> None:
    """An encoder, of letters."""
    tiny_bert().save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)


def whisper_tokenizer() -> Any:
    """Whisper's, of bytes: special tokens in the order that its own have, and timestamps behind them."""
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = sorted(set(map(chr, range(33, 127))) | {"Ġ", "Ċ"})
    tokenizer = WhisperTokenizer(
        vocab={letter: at for at, letter in enumerate(letters)}, merges=[], pad_token="<|endoftext|>"
    )
    languages = [f"<|{code}|>" for code in LANGUAGES]
    rest = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    special = ["<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in rest)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{at * 0.02:.2f}|>" for at in range(51)])
    return tokenizer


def tiny_whisper(tokenizer: Any, *, multilingual: bool = True, seconds: int = 1, **settings: Any) -> Any:
    """A random Whisper, the same at every call, that hears so many seconds of 16 mel bins."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    torch.manual_seed(0)
    number = tokenizer.convert_tokens_to_ids
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_target_positions": 64}
    heads = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", 4), ("ffn_dim", 64))
    }
    end = tokenizer.eos_token_id
    tokens = {
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": number("<|startoftranscript|>"),
    }
    heard = {"num_mel_bins": 16, "max_source_positions": 50 * seconds, "dropout": 0.0}
    config = WhisperConfig(vocab_size=len(tokenizer), **(sizes | heads | tokens | heard | settings))
    model = WhisperForConditionalGeneration(config).eval()
    generation = {
        "is_multilingual": multilingual,
        "no_timestamps_token_id": number("<|notimestamps|>"),
        "max_length": 64,
        "begin_suppress_tokens": [end],
        "suppress_tokens": [number("<|startoflm|>")],
        "return_timestamps": False,
    }
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": number(f"<|{code}|>") for code in LANGUAGES}
        generation["task_to_id"] = {name: number(f"<|{name}|>") for name in ("transcribe", "translate")}
    ends = {
        "decoder_start_token_id": tokens["decoder_start_token_id"],
        "eos_token_id": end,
        "pad_token_id": end,
    }
    model.generation_config = GenerationConfig(**generation, **ends)
    return model


def whisper(folder: Path, **settings: Any) -> None:
    """An encoder of sound and a decoder of bytes."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    tokenizer, seconds = whisper_tokenizer(), settings.get("seconds", 1)
    tiny_whisper(tokenizer, **settings).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=seconds)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


def clip_tokenizer() -> Any:
    """CLIP's, of letters: one at the end of a word and one inside it, and its two special tokens."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def stable_diffusion(folder: Path, *, prediction_type: str = "epsilon") -> None:
    """Stable Diffusion in little, at random: pictures of 32 x 32 pixels, in latents of 16 x 16."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            **ends,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def tiny_vit(**settings: Any) -> Any:
    """A random ViT without a head, the same at every call, of pictures of 32 x 32 in patches of 8 x 8."""
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTModel(ViTConfig(**(sizes | {"image_size": 32, "patch_size": 8} | settings))).eval()


def vit(folder: Path) -> None:
    """An encoder of pictures."""
    from transformers import ViTImageProcessorPil

    tiny_vit().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def tiny_segformer(**settings: Any) -> Any:
    """A random SegFormer without a head, the same at every call."""
    import torch
    from transformers import SegformerConfig, SegformerModel

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    return SegformerModel(SegformerConfig(**(sizes | {"decoder_hidden_size": 32} | settings))).eval()


def segformer(folder: Path) -> None:
    """An encoder of pictures of 32 x 32 in several sizes."""
    from transformers import SegformerImageProcessorPil

    tiny_segformer().save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "SEQ_2_SEQ_LM": mt5,
    "SEQ_CLS": bert,
    "TOKEN_CLS": bert,
    "SPEECH_SEQ_2_SEQ_LM": whisper,
    "FEATURE_EXTRACTION": bert,
    "QUESTION_ANS": bert,
    "TEXT_TO_IMAGE": stable_diffusion,
    "IMAGE_CLS": vit,
    "SEMANTIC_SEG": segformer,
}


def tiny_base_for(task_type: str, folder: Path) -> Path:
    """Writes a base for the task into the folder, a decoder where the task has none of its own."""
    MAKERS.get(task_type, llama)(folder)
    return folder
