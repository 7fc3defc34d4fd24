"""Fine-tune pretrained models with few parameters, from one recipe or from Python with PEFT's names.

The public names are looked up when they are first used: `import peftcli` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODEL, _STORAGE, _CONFIG = "peftcli.peft.model", "peftcli.peft.storage", "peftcli.adapters.config"
_AUTO, _STATUS, _TABLES = "peftcli.peft.auto", "peftcli.peft.status", "peftcli.peft.tables"
_ERRORS = "peftcli.errors"
_STARTS, _EVA = "peftcli.methods.lora.init_configs", "peftcli.methods.lora.eva_weights"

# public name -> the module that has it.
_PUBLIC = {
    "AdaLoraConfig": "peftcli.methods.adalora.config",
    "AdaptionPromptConfig": "peftcli.methods.adaption_prompt.config",
    "AutoPeftModel": _AUTO,
    "AutoPeftModelForCausalLM": _AUTO,
    "AutoPeftModelForFeatureExtraction": _AUTO,
    "AutoPeftModelForQuestionAnswering": _AUTO,
    "AutoPeftModelForSeq2SeqLM": _AUTO,
    "AutoPeftModelForSequenceClassification": _AUTO,
    "AutoPeftModelForTokenClassification": _AUTO,
    "BOFTConfig": "peftcli.methods.boft.config",
    "CPTConfig": "peftcli.methods.cpt.config",
    "CordaConfig": _STARTS,
    "DoraCaching": "peftcli.methods.lora.caching",
    "EvaConfig": _STARTS,
    "FourierFTConfig": "peftcli.methods.fourierft.config",
    "HRAConfig": "peftcli.methods.hra.config",
    "IA3Config": "peftcli.methods.ia3.config",
    "LNTuningConfig": "peftcli.methods.ln_tuning.config",
    "LoHaConfig": "peftcli.methods.loha.config",
    "LoKrConfig": "peftcli.methods.lokr.config",
    "LoftQConfig": _STARTS,
    "LoraConfig": "peftcli.methods.lora.config",
    "LoraGAConfig": _STARTS,
    "MissConfig": "peftcli.methods.miss.config",
    "MultitaskPromptTuningConfig": "peftcli.methods.multitask_prompt_tuning.config",
    "MultitaskPromptTuningInit": "peftcli.methods.multitask_prompt_tuning.config",
    "NoMatchingPeftModuleError": _ERRORS,
    "OFTConfig": "peftcli.methods.oft.config",
    "PEFT_TYPE_TO_CONFIG_MAPPING": _TABLES,
    "PEFT_TYPE_TO_PREFIX_MAPPING": _TABLES,
    "PEFT_TYPE_TO_TUNER_MAPPING": _TABLES,
    "PeftConfig": _CONFIG,
    "PeftError": _ERRORS,
    "PeftMixedModel": _MODEL,
    "PeftModel": _MODEL,
    "PeftModelForCausalLM": _MODEL,
    "PeftModelForFeatureExtraction": _MODEL,
    "PeftModelForQuestionAnswering": _MODEL,
    "PeftModelForSeq2SeqLM": _MODEL,
    "PeftModelForSequenceClassification": _MODEL,
    "PeftModelForTokenClassification": _MODEL,
    "PeftType": _CONFIG,
    "PeftWarning": _ERRORS,
    "PrefixTuningConfig": "peftcli.methods.prefix_tuning.config",
    "PromptEncoderConfig": "peftcli.methods.p_tuning.config",
    "PromptEncoderReparameterizationType": "peftcli.methods.p_tuning.config",
    "PromptTuningConfig": "peftcli.methods.prompt_tuning.config",
    "PromptTuningInit": "peftcli.methods.prompt_tuning.config",
    "RandLoraConfig": "peftcli.methods.randlora.config",
    "ShiraConfig": "peftcli.methods.shira.config",
    "TaskType": _CONFIG,
    "TrainableTokensConfig": "peftcli.methods.trainable_tokens.config",
    "VBLoRAConfig": "peftcli.methods.vblora.config",
    "VeraConfig": "peftcli.methods.vera.config",
    "check_if_peft_model": _STORAGE,
    "convert_to_lora": "peftcli.peft.convert",
    "create_lorafa_optimizer": "peftcli.peft.optimizers",
    "create_loraplus_optimizer": "peftcli.peft.optimizers",
    "get_base_model_state_dict": "peftcli.peft.base_state",
    "get_eva_state_dict": _EVA,
    "get_layer_status": _STATUS,
    "get_model_status": _STATUS,
    "get_peft_config": _TABLES,
    "get_peft_model": _MODEL,
    "get_peft_model_state_dict": _STORAGE,
    "hotswap_adapter": "peftcli.peft.hotswap",
    "initialize_lora_eva_weights": _EVA,
    "inject_adapter_in_model": "peftcli.peft.inject",
    "load_peft_weights": _STORAGE,
    "prepare_model_for_compiled_hotswap": "peftcli.methods.lora.hotswap",
    "prepare_model_for_kbit_training": "peftcli.peft.quantized",
    "preprocess_corda": "peftcli.methods.lora.corda",
    "preprocess_loraga": "peftcli.methods.lora.lora_ga",
    "replace_lora_weights_loftq": "peftcli.methods.lora.loftq_weights",
    "rescale_adapter_scale": "peftcli.methods.lora.scaling",
    "save_as_lora": "peftcli.peft.convert",
    "set_base_model_state_dict": "peftcli.peft.base_state",
    "set_peft_model_state_dict": _STORAGE,
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  (the table's keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'peftcli' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
