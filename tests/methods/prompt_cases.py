"""Every prompt method, with configs that reach its corners, on small models of each task.

As cases.py is for methods on layers: the laws and the oracle's tests run over all of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from tests.methods.cases import SIZES, bert, bert_tokens, gpt2, llama, t5

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
VIRTUAL = 3


def classifying_llama() -> nn.Module:
    return LlamaForSequenceClassification(
        LlamaConfig(**SIZES, hidden_size=8, intermediate_size=12, pad_token_id=0, num_labels=3)
    )


def narrow_opt() -> nn.Module:
    """Words have fewer numbers than hidden states, as in OPT-350m."""
    return OPTForCausalLM(
        OPTConfig(**SIZES, hidden_size=8, ffn_dim=12, word_embed_proj_dim=4, max_position_embeddings=32)
    )


def falcon() -> nn.Module:
    """One head of keys and values for all heads of queries."""
    return FalconForCausalLM(
        FalconConfig(**SIZES, hidden_size=8, multi_query=True, new_decoder_architecture=False)
    )


def sliding_mistral() -> nn.Module:
    """Layers that see the last tokens only."""
    return MistralForCausalLM(
        MistralConfig(**SIZES, hidden_size=8, intermediate_size=12, num_key_value_heads=1, sliding_window=5)
    )


def gemma() -> nn.Module:
    """Layers that see the last tokens and layers that see all in turn, and heads of a size of their own."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES, hidden_size=8, intermediate_size=12, num_key_value_heads=1, head_dim=6, sliding_window=5
        )
    )


def small_bert(kind: type[PreTrainedModel]) -> nn.Module:
    return kind(
        BertConfig(**SIZES, hidden_size=8, intermediate_size=12, max_position_embeddings=16, num_labels=2)
    )


def answering_bert() -> nn.Module:
    return small_bert(BertForQuestionAnswering)


def bare_bert() -> nn.Module:
    return small_bert(BertModel)


def bart() -> nn.Module:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=23,
            d_model=8,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=12,
            decoder_ffn_dim=12,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


@dataclass(frozen=True)
class PromptCase:
    """One config on one model. `config` is keyword arguments that ours and PEFT's classes both take."""

    name: str
    peft_type: str
    build: Callable[[], nn.Module]
    task_type: str = "CAUSAL_LM"
    config: dict[str, Any] = field(default_factory=dict)
    # PEFT can do this too.
    oracle: bool = True

    def arguments(self) -> dict[str, Any]:
        """The config's fields, for either's class."""
        length = {} if self.peft_type == "CPT" else {"num_virtual_tokens": VIRTUAL}
        return {"task_type": self.task_type, **length, **self.config}

    def __str__(self) -> str:
        return f"{self.peft_type} {self.name}"


def prompt(name, build=llama, task="CAUSAL_LM", *, oracle=True, **config) -> PromptCase:
    return PromptCase(name, "PROMPT_TUNING", build, task, config, oracle)


def p_tuning(name, build=llama, task="CAUSAL_LM", *, oracle=True, **config) -> PromptCase:
    return PromptCase(name, "P_TUNING", build, task, config, oracle)


def prefix(name, build=llama, task="CAUSAL_LM", *, oracle=True, **config) -> PromptCase:
    return PromptCase(name, "PREFIX_TUNING", build, task, config, oracle)


def multitask(name, build=llama, task="CAUSAL_LM", *, oracle=True, **config) -> PromptCase:
    return PromptCase(name, "MULTITASK_PROMPT_TUNING", build, task, config, oracle)


def cpt(name, build=llama, **config) -> PromptCase:
    return PromptCase(name, "CPT", build, "CAUSAL_LM", config)


PROMPT_CASES = [
    prompt("random"),
    prompt("sampled words", prompt_tuning_init="SAMPLE_VOCAB"),
    prompt("gpt2", gpt2),
    prompt("gemma", gemma),
    prompt("narrow opt", narrow_opt, oracle=False),  # PEFT takes the hidden size for that of a word
    prompt("sequence classes", bert, "SEQ_CLS"),
    prompt("sequence classes by the last token", classifying_llama, "SEQ_CLS"),
    prompt("token classes", bert_tokens, "TOKEN_CLS"),
    prompt("answers", answering_bert, "QUESTION_ANS"),
    prompt("features", bare_bert, "FEATURE_EXTRACTION"),
    prompt("t5", t5, "SEQ_2_SEQ_LM"),
    prompt("bart", bart, "SEQ_2_SEQ_LM"),
    # PEFT goes on asking the embeddings that were there before.
    prompt("embeddings saved", modules_to_save=["embed_tokens"], oracle=False),
    p_tuning("mlp"),
    p_tuning("wide mlp", encoder_hidden_size=5),
    p_tuning("lstm", encoder_reparameterization_type="LSTM", encoder_num_layers=2, encoder_dropout=0.2),
    p_tuning("sequence classes", bert, "SEQ_CLS"),
    p_tuning("narrow opt", narrow_opt, oracle=False),
    p_tuning("t5", t5, "SEQ_2_SEQ_LM"),
    prefix("plain"),
    prefix("projected", prefix_projection=True, encoder_hidden_size=5),
    prefix("zero", init_weights="zero"),
    prefix("gpt2", gpt2),
    prefix("narrow opt", narrow_opt),
    prefix("sliding window", sliding_mistral),
    prefix("gemma", gemma),
    prefix("multi-query falcon", falcon, oracle=False),  # PEFT gives keys to every head
    prefix("sequence classes", bert, "SEQ_CLS"),
    prefix("sequence classes by the last token", classifying_llama, "SEQ_CLS"),
    prefix("token classes", bert_tokens, "TOKEN_CLS"),
    prefix("answers", answering_bert, "QUESTION_ANS"),
    prefix("features", bare_bert, "FEATURE_EXTRACTION"),
    prefix("t5", t5, "SEQ_2_SEQ_LM"),
    prefix("bart", bart, "SEQ_2_SEQ_LM"),
    multitask("one task"),
    multitask("three tasks of rank two", num_tasks=3, num_ranks=2),
    multitask("sequence classes", bert, "SEQ_CLS", num_tasks=2),
    # PEFT does not give the task to the prompt here, and forgets the decoder's prompt when it generates.
    multitask("features", bare_bert, "FEATURE_EXTRACTION", oracle=False),
    multitask("t5", t5, "SEQ_2_SEQ_LM", oracle=False),
    cpt("defaults"),
    cpt(
        "two examples",
        cpt_token_ids=[5, 6, 7, 8, 9, 10, 11, 12],
        cpt_tokens_type_mask=[1, 2, 3, 4, 5, 6, 7, 8],
        opt_weighted_loss_type="decay",
        opt_loss_decay_factor=0.9,
        opt_projection_epsilon=2.0,
        opt_projection_format_epsilon=1.0,
    ),
]


def inputs(case: PromptCase) -> dict[str, torch.Tensor]:
    """Arguments for a case's model."""
    arguments = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    if case.task_type == "SEQ_2_SEQ_LM":
        arguments["decoder_input_ids"] = TOKENS[:, :4]
    if case.peft_type.startswith("MULTITASK"):
        arguments["task_ids"] = torch.arange(len(TOKENS)) % case.config.get("num_tasks", 1)
    return arguments


def labels(case: PromptCase) -> dict[str, torch.Tensor]:
    """What a case's model is trained to give."""
    if case.task_type == "SEQ_CLS":
        return {"labels": torch.tensor([1, 0])}
    if case.task_type == "QUESTION_ANS":
        return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])}
    if case.task_type == "FEATURE_EXTRACTION":
        return {}
    return {"labels": TOKENS % 3 if case.task_type == "TOKEN_CLS" else TOKENS}


@cache
def _prototype(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(7)
    model = make().to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero that a prompt is felt
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype), alpha=0.3)
    return model


def build(case: PromptCase, dtype: torch.dtype = torch.float64) -> Any:
    """A case's base model: the same every time."""
    return copy.deepcopy(_prototype(case.build, dtype))


def given(result: Any) -> torch.Tensor:
    """What stands for a model's answer."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if name in result:
            return result[name]
    raise AssertionError(list(result))


def outputs(model: Any, arguments: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model gives, without its dropout."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result = given(model(**arguments))
    model.train(was_training)
    return result


def generated(model: Any, arguments: dict[str, torch.Tensor], **settings) -> torch.Tensor:
    """What a model continues with, greedily."""
    given = {name: value for name, value in arguments.items() if name != "decoder_input_ids"}
    model.eval()
    model.generation_config.eos_token_id = None  # no row ends before the others
    return model.generate(**given, **{"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0} | settings)
