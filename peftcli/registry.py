"""What can be named in a recipe, as `name -> "module:object"`: strings only, so that naming costs no import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from peftcli.errors import RecipeError, did_you_mean

# peft_type -> the method's config dataclass (imports no torch). Its `method` field names the rest.
METHODS = {
    "LORA": "peftcli.methods.lora.config:LoraConfig",
    "ADALORA": "peftcli.methods.adalora.config:AdaLoraConfig",
    "IA3": "peftcli.methods.ia3.config:IA3Config",
    "LOHA": "peftcli.methods.loha.config:LoHaConfig",
    "LOKR": "peftcli.methods.lokr.config:LoKrConfig",
    "VERA": "peftcli.methods.vera.config:VeraConfig",
    "OFT": "peftcli.methods.oft.config:OFTConfig",
    "BOFT": "peftcli.methods.boft.config:BOFTConfig",
    "LN_TUNING": "peftcli.methods.ln_tuning.config:LNTuningConfig",
    "MISS": "peftcli.methods.miss.config:MissConfig",
    "RANDLORA": "peftcli.methods.randlora.config:RandLoraConfig",
    "VBLORA": "peftcli.methods.vblora.config:VBLoRAConfig",
    "FOURIERFT": "peftcli.methods.fourierft.config:FourierFTConfig",
    "HRA": "peftcli.methods.hra.config:HRAConfig",
    "SHIRA": "peftcli.methods.shira.config:ShiraConfig",
    "TRAINABLE_TOKENS": "peftcli.methods.trainable_tokens.config:TrainableTokensConfig",
    "PROMPT_TUNING": "peftcli.methods.prompt_tuning.config:PromptTuningConfig",
    "P_TUNING": "peftcli.methods.p_tuning.config:PromptEncoderConfig",
    "PREFIX_TUNING": "peftcli.methods.prefix_tuning.config:PrefixTuningConfig",
    "MULTITASK_PROMPT_TUNING": "peftcli.methods.multitask_prompt_tuning.config:MultitaskPromptTuningConfig",
    "CPT": "peftcli.methods.cpt.config:CPTConfig",
    "ADAPTION_PROMPT": "peftcli.methods.adaption_prompt.config:AdaptionPromptConfig",
}

# peft_type -> the method itself: how it wraps layers (imports torch).
ENGINES = {
    "LORA": "peftcli.methods.lora.method:LoraMethod",
    "ADALORA": "peftcli.methods.adalora.method:AdaLoraMethod",
    "IA3": "peftcli.methods.ia3.method:IA3Method",
    "LOHA": "peftcli.methods.loha.method:LoHaMethod",
    "LOKR": "peftcli.methods.lokr.method:LoKrMethod",
    "VERA": "peftcli.methods.vera.method:VeraMethod",
    "OFT": "peftcli.methods.oft.method:OFTMethod",
    "BOFT": "peftcli.methods.boft.method:BOFTMethod",
    "LN_TUNING": "peftcli.methods.ln_tuning.method:LNTuningMethod",
    "MISS": "peftcli.methods.miss.method:MissMethod",
    "RANDLORA": "peftcli.methods.randlora.method:RandLoraMethod",
    "VBLORA": "peftcli.methods.vblora.method:VBLoRAMethod",
    "FOURIERFT": "peftcli.methods.fourierft.method:FourierFTMethod",
    "HRA": "peftcli.methods.hra.method:HRAMethod",
    "SHIRA": "peftcli.methods.shira.method:ShiraMethod",
    "TRAINABLE_TOKENS": "peftcli.methods.trainable_tokens.method:TrainableTokensMethod",
    "PROMPT_TUNING": "peftcli.methods.prompt_tuning.method:PromptTuningMethod",
    "P_TUNING": "peftcli.methods.p_tuning.method:PTuningMethod",
    "PREFIX_TUNING": "peftcli.methods.prefix_tuning.method:PrefixTuningMethod",
    "MULTITASK_PROMPT_TUNING": "peftcli.methods.multitask_prompt_tuning.method:MultitaskPromptTuningMethod",
    "CPT": "peftcli.methods.cpt.method:CPTMethod",
    "ADAPTION_PROMPT": "peftcli.methods.adaption_prompt.method:AdaptionPromptMethod",
}

# task_type -> the task's class.
TASKS = {
    "CAUSAL_LM": "peftcli.tasks.causal_lm:CausalLM",
    "SEQ_2_SEQ_LM": "peftcli.tasks.seq2seq:SequenceToSequence",
    "SEQ_CLS": "peftcli.tasks.seq_cls:SequenceClassification",
    "TOKEN_CLS": "peftcli.tasks.token_cls:TokenClassification",
    "SPEECH_SEQ_2_SEQ_LM": "peftcli.tasks.speech:SpeechRecognition",
    "FEATURE_EXTRACTION": "peftcli.tasks.feature_extraction:FeatureExtraction",
    "QUESTION_ANS": "peftcli.tasks.question_answering:QuestionAnswering",
    "TEXT_TO_IMAGE": "peftcli.tasks.text_to_image:TextToImage",
    "IMAGE_CLS": "peftcli.tasks.image_cls:ImageClassification",
    "SEMANTIC_SEG": "peftcli.tasks.semantic_seg:SemanticSegmentation",
}

# data source `type` -> the function from a row to an example.
FORMATS = {
    "text": "peftcli.data.formats.text:text",
    "completion": "peftcli.data.formats.completion:completion",
    "instruction": "peftcli.data.formats.instruction:instruction",
    "chat": "peftcli.data.formats.chat:chat",
    "pairs": "peftcli.data.formats.pairs:pairs",
    "classification": "peftcli.data.formats.classification:classification",
    "tokens": "peftcli.data.formats.tokens:tokens",
    "audio": "peftcli.data.formats.audio:audio",
    "similarity": "peftcli.data.formats.similarity:similarity",
    "qa": "peftcli.data.formats.qa:qa",
    "caption": "peftcli.data.formats.caption:caption",
    "image": "peftcli.data.formats.image:image",
    "segmentation": "peftcli.data.formats.segmentation:segmentation",
}


def resolve(table: dict[str, str], name: str, *, what: str) -> Any:
    """The object that `name` stands for in one of the tables above.

    Raises:
        RecipeError: where the table has no such name; `what` says what kind of name it is.
    """
    if name not in table:
        raise RecipeError(f"unknown {what} {name!r}; {did_you_mean(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
