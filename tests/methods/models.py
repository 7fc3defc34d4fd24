"""Small models of each kind of layer, for the cases of every method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


class Net(nn.Module):
    """A bit of everything that is no Transformer: an embedding, convolutions, linear layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.conv1 = nn.Conv1d(6, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.conv2 = nn.Conv2d(1, 4, (3, 2), stride=2, padding=1, dilation=(1, 2))
        self.conv3 = nn.Conv3d(1, 4, 2)
        self.mid = nn.Linear(16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv1(self.emb(tokens).transpose(1, 2)).transpose(1, 2))  # (B, T, 8)
        flat = self.conv2(x[:, None]).tanh().mean((2, 3))  # (B, 4)
        deep = self.conv3(x.reshape(len(x), 1, 2, -1, 8)).tanh().mean((2, 3, 4))  # (B, 4)
        return self.head(self.mid(torch.cat([flat, deep, x.mean(1)], 1)).tanh())


class Pixels(nn.Module):
    """Convolutions with square kernels, which is all that some of PEFT's methods take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, stride=2, padding=1)
        self.point = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = (tokens[:, :, None] * tokens[:, None, :] % 7 / 7).to(self.head.weight).unflatten(1, (2, -1))
        return self.head(self.point(self.conv(x).tanh()).tanh().mean((2, 3)))


class Stack(nn.Module):
    """Parameters that are in no linear layer, read in several ways: a matrix, and a stack of them either way round."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.stack = nn.Parameter(torch.randn(3, 6, 8) if is_transposed else torch.randn(3, 8, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stack = self.stack if self.is_transposed else self.stack.transpose(1, 2)
        mixed = torch.einsum("bi,eio->bo", self.inner(x * self.scale), stack)
        return mixed + x @ stack[1] + nn.functional.linear(x, self.matrix)


class Stacks(nn.Module):
    """No Transformer, with such modules."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.plain = Stack(is_transposed=False)
        self.turned = Stack(is_transposed=True)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.emb(tokens).mean(1)
        return self.head(self.turned(self.down(self.plain(x)).tanh()).tanh())


SIZES: dict[str, Any] = {"vocab_size": 23, "num_hidden_layers": 2, "num_attention_heads": 2}


def net() -> nn.Module:
    return Net()


def pixels() -> nn.Module:
    return Pixels()


def llama(**changes: Any) -> nn.Module:
    settings = SIZES | {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_key_value_heads": 1,
        "attention_bias": True,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def stacks() -> nn.Module:
    return Stacks()


MOE = {"hidden_size": 8, "intermediate_size": 8, "num_key_value_heads": 1, "head_dim": 4}


def qwen_moe() -> nn.Module:
    """Four experts of which each token takes two; (experts, outputs, inputs)."""
    experts = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    # Transformers' faster ways take no float64.
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **MOE, **experts, experts_implementation="eager"))


def gpt_oss() -> nn.Module:
    """The same with biases; (experts, inputs, outputs)."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return GptOssForCausalLM(GptOssConfig(**SIZES, **MOE, **experts, experts_implementation="eager"))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=23, n_positions=16, n_embd=8, n_layer=2, n_head=2))


def bert(kind: type[PreTrainedModel] = BertForSequenceClassification) -> nn.Module:
    return kind(
        BertConfig(**SIZES, hidden_size=8, intermediate_size=12, max_position_embeddings=16, num_labels=3)
    )


def bert_tokens() -> nn.Module:
    return bert(BertForTokenClassification)


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=23, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )
