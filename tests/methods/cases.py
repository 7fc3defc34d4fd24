"""Every registered method, with configs that reach its corners, on small models of each kind of layer.

A law test runs over all of these; a new method adds its cases here and is tested. Models and data are tiny, random
and in float64 where the laws are exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import BertForMaskedLM, T5ForConditionalGeneration

from tests.methods.models import (
    SIZES,  # noqa: F401  (other tests take all models from here)
    Net,
    Pixels,
    Stacks,
    bert,
    bert_tokens,
    gpt2,
    gpt_oss,
    llama,
    net,
    pixels,
    qwen_moe,
    stacks,
    t5,
)


@dataclass(frozen=True)
class Case:
    """One config on one model. `config` is keyword arguments that ours and PEFT's classes both take."""

    name: str
    peft_type: str
    build: Callable[[], nn.Module]
    config: dict[str, Any] = field(default_factory=dict)
    # The fresh adapter changes nothing.
    silent: bool = True
    # Switched off, the model is its base.
    keeps_base: bool = True
    # PEFT can do this too.
    oracle: bool = True


def lora(
    name: str, build: Callable[[], nn.Module], *, silent=True, keeps_base=True, oracle=True, **config
) -> Case:
    return Case(name, "LORA", build, {"r": 2, "lora_alpha": 6, **config}, silent, keeps_base, oracle)


def adalora(
    name: str, build: Callable[[], nn.Module], *, silent=True, keeps_base=True, oracle=True, **config
) -> Case:
    return Case(name, "ADALORA", build, {"total_step": 10, **config}, silent, keeps_base, oracle)


def ia3(name: str, build: Callable[[], nn.Module], *, silent=True, oracle=True, **config) -> Case:
    return Case(name, "IA3", build, config, silent, True, oracle)


def of(
    peft_type: str,
    name: str,
    build: Callable[[], nn.Module],
    *,
    silent=True,
    keeps_base=True,
    oracle=True,
    **config,
) -> Case:
    return Case(name, peft_type, build, config, silent, keeps_base, oracle)


def randlora(name: str, build: Callable[[], nn.Module], **config) -> Case:
    # PEFT's default alpha over so small a rank would blow rounding up.
    return of("RANDLORA", name, build, **{"r": 3, "randlora_alpha": 9, "save_projection": False, **config})


def vblora(name: str, build: Callable[[], nn.Module], **config) -> Case:
    return of("VBLORA", name, build, **{"silent": False, "num_vectors": 7, "vector_length": 4, **config})


def fourierft(name: str, build: Callable[[], nn.Module], **config) -> Case:
    return of("FOURIERFT", name, build, **{"silent": False, "n_frequency": 12, **config})


def loha(name: str, build: Callable[[], nn.Module], **config) -> Case:
    return of("LOHA", name, build, **{"r": 2, **config})


def lokr(name: str, build: Callable[[], nn.Module], **config) -> Case:
    return of("LOKR", name, build, **{"r": 1, **config})


def tokens(name: str, build: Callable[[], nn.Module], **config) -> Case:
    return of("TRAINABLE_TOKENS", name, build, **{"token_indices": [9, 1, 4], **config})


tied_llama, masked_bert = partial(llama, tie_word_embeddings=True), partial(bert, BertForMaskedLM)
HEAD_AND_EMBEDDINGS = ["embed_tokens", "lm_head"]
Q, QV = ["q_proj"], ["q_proj", "v_proj"]
EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]
CONVS: dict[str, Any] = {"target_modules": ["conv", "point"]}
CASES = [
    lora("defaults", llama),
    lora("all linear", llama, target_modules="all-linear", lora_dropout=0.3),
    lora("a regular expression", llama, target_modules=r".*\.1\..*(q|up)_proj"),
    lora(
        "excluded", llama, target_modules=["q_proj", "o_proj"], exclude_modules=["layers.0.self_attn.q_proj"]
    ),
    lora("excluded by expression", llama, target_modules=QV, exclude_modules=r".*0.*v_proj"),
    lora("some layers", llama, target_modules=QV, layers_to_transform=[1]),
    lora("some layers of a list", llama, target_modules=QV, layers_to_transform=0, layers_pattern="layers"),
    lora("rank patterns", llama, target_modules=QV, rank_pattern={"q_proj": 4, r".*\.1\..*v_proj": 3}),
    lora("alpha patterns", llama, target_modules=QV, alpha_pattern={"layers.1.self_attn.q_proj": 3}),
    lora("rank-stabilised", llama, target_modules=QV, use_rslora=True, init_lora_weights=False, silent=False),
    lora("random", llama, target_modules=QV, init_lora_weights=False, silent=False),
    lora("gaussian", llama, target_modules=QV, init_lora_weights="gaussian"),
    lora("orthogonal", llama, target_modules=QV, init_lora_weights="orthogonal"),
    lora("pissa", llama, target_modules=QV, init_lora_weights="pissa", keeps_base=False),
    lora("fast pissa", llama, target_modules=Q, init_lora_weights="pissa_niter_8", keeps_base=False),
    lora("olora", llama, target_modules=QV, init_lora_weights="olora", keeps_base=False),
    # PEFT warns that it could be done with less memory; test_data_driven.py has the oracle.
    lora("eva, before it has seen rows", llama, target_modules=QV, init_lora_weights="eva", oracle=False),
    # PEFT needs a GPU to round.
    lora("loftq", llama, init_lora_weights="loftq", silent=False, keeps_base=False, oracle=False),
    lora(
        "loftq in eight bits",
        gpt2,
        init_lora_weights="loftq",
        loftq_config={"loftq_bits": 8, "loftq_iter": 2},
        fan_in_fan_out=True,
        silent=False,
        keeps_base=False,
        oracle=False,
    ),
    lora("dora", llama, target_modules=QV, use_dora=True),
    lora("dora with dropout", llama, target_modules=QV, use_dora=True, lora_dropout=0.3),
    lora("random dora", llama, target_modules=Q, use_dora=True, init_lora_weights=False, silent=False),
    lora("pissa dora", llama, target_modules=Q, use_dora=True, init_lora_weights="pissa", keeps_base=False),
    lora("all biases", llama, target_modules=Q, bias="all", keeps_base=False),
    lora("biases of adapted layers", llama, target_modules=Q, bias="lora_only", keeps_base=False),
    lora("embeddings", llama, target_modules=["embed_tokens", "q_proj"]),
    lora("embeddings and head", llama, target_modules=["embed_tokens", "lm_head"]),
    lora("head saved", llama, target_modules=QV, modules_to_save=["lm_head"]),
    lora("head and embeddings saved", llama, target_modules=Q, modules_to_save=["lm_head", "embed_tokens"]),
    lora("conv1d of gpt2", gpt2),
    lora("conv1d of gpt2, all", gpt2, target_modules="all-linear", fan_in_fan_out=True),
    lora("conv1d of gpt2, dora", gpt2, use_dora=True, fan_in_fan_out=True),
    lora("conv1d of gpt2, pissa", gpt2, init_lora_weights="pissa", fan_in_fan_out=True, keeps_base=False),
    lora("embeddings of gpt2", gpt2, target_modules=["wte", "c_attn"], fan_in_fan_out=True),
    lora("sequence classes", bert, task_type="SEQ_CLS"),
    lora("sequence classes, all linear", bert, task_type="SEQ_CLS", target_modules="all-linear"),
    lora(
        "token classes",
        bert_tokens,
        task_type="TOKEN_CLS",
        target_modules=["query"],
        bias="all",
        keeps_base=False,
    ),
    lora("t5", t5, task_type="SEQ_2_SEQ_LM"),
    lora("linear", net, target_modules=["mid"], modules_to_save=["head"]),
    lora("convolutions", net, target_modules=["conv1", "conv3"]),
    lora("dilated convolution", net, target_modules=["conv2"], oracle=False),  # PEFT forgets the dilation
    lora("convolutions, gaussian", net, target_modules=["conv1", "conv3"], init_lora_weights="gaussian"),
    lora("dora on convolutions", net, target_modules=["conv1", "conv3"], use_dora=True),
    lora("embedding", net, target_modules=["emb", "mid"]),
    lora("dora on an embedding", net, target_modules=["emb"], use_dora=True),
    lora("embedding and dropout", net, target_modules=["emb", "mid"], lora_dropout=0.3),
    lora("dora on an embedding, and dropout", net, target_modules=["emb"], use_dora=True, lora_dropout=0.3),
    lora("tokens", llama, target_modules=Q, trainable_token_indices=[5, 2]),
    lora("tokens of tied embeddings", tied_llama, target_modules=Q, trainable_token_indices=[5, 2]),
    lora("tokens by module", llama, target_modules=Q, trainable_token_indices={"embed_tokens": [7]}),
    lora(
        "tokens of both",
        llama,
        target_modules=QV,
        trainable_token_indices={"lm_head": [3, 8], "embed_tokens": [7]},
    ),
    lora(
        "other tokens of a tied head",
        tied_llama,
        target_modules=Q,
        trainable_token_indices={"embed_tokens": [7, 1], "lm_head": [3]},
    ),
    lora(
        "the same tokens of a tied head",
        tied_llama,
        target_modules=Q,
        trainable_token_indices={"embed_tokens": [7, 1], "lm_head": [7, 1]},
    ),
    lora("tokens of gpt2", gpt2, trainable_token_indices=[0, 2], fan_in_fan_out=True),
    lora("tokens of t5", t5, task_type="SEQ_2_SEQ_LM", trainable_token_indices=[1, 10]),
    lora("tokens and a head", bert, task_type="SEQ_CLS", trainable_token_indices=[6]),
    lora("tokens, dora and dropout", llama, use_dora=True, lora_dropout=0.3, trainable_token_indices=[3, 2]),
    lora("tokens and biases", llama, bias="all", trainable_token_indices=[3], keeps_base=False),
    lora("tokens of an embedding", net, target_modules=["mid"], trainable_token_indices={"emb": [4, 0]}),
    # PEFT forgets the bias of such a head.
    lora("tokens of a head with a bias", masked_bert, trainable_token_indices=[4, 0], oracle=False),
    lora(
        "tied embeddings saved",
        tied_llama,
        target_modules=Q,
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    ),
    lora(
        "a tied head saved",
        tied_llama,
        target_modules=Q,
        modules_to_save=["lm_head"],
        ensure_weight_tying=True,
    ),
    lora("experts", qwen_moe, target_modules=[], target_parameters=EXPERTS),
    lora("experts and attention", qwen_moe, target_modules=Q, target_parameters=EXPERTS[:1]),
    lora(
        "experts and a router", qwen_moe, target_modules=[], target_parameters=[*EXPERTS, "mlp.gate.weight"]
    ),
    lora("experts the other way round", gpt_oss, target_parameters=EXPERTS, use_rslora=True),
    lora(
        "experts, random",
        gpt_oss,
        target_modules=[],
        target_parameters=EXPERTS[1:],
        init_lora_weights=False,
        silent=False,
    ),
    lora(
        "ranks of parameters",
        qwen_moe,
        target_modules=Q,
        target_parameters=EXPERTS,
        rank_pattern={"experts.down_proj": 3, "q_proj": 1},
        alpha_pattern={r".*\.1\..*gate_up_proj": 5},
        oracle=False,  # PEFT looks for modules of such names, and warns that there are none
    ),
    lora(
        "parameters of any module",
        stacks,
        target_modules=["inner"],
        target_parameters=["matrix", "plain.stack", "stack"],
        modules_to_save=["head"],
        init_lora_weights="gaussian",
    ),
    lora("parameters", stacks, target_parameters=["plain.matrix", "stack"], modules_to_save=["head"]),
    lora(
        "a linear layer's parameter",
        stacks,
        target_parameters=["down.weight"],
        bias="lora_only",
        keeps_base=False,
    ),
    adalora("defaults", llama),
    adalora("tokens of tied embeddings", tied_llama, target_modules=Q, trainable_token_indices=[5, 2]),
    adalora("all linear", llama, target_modules="all-linear", init_r=4, target_r=2, lora_dropout=0.3),
    adalora("some layers", llama, target_modules=QV, layers_to_transform=[1], lora_alpha=3),
    adalora("random", llama, target_modules=QV, init_r=3, target_r=1, init_lora_weights=False, silent=False),
    adalora("all biases", llama, target_modules=Q, bias="all", keeps_base=False),
    adalora("biases of adapted layers", llama, target_modules=Q, bias="lora_only", keeps_base=False),
    adalora(
        "ranks allocated",
        llama,
        target_modules=Q,
        init_r=3,
        target_r=2,
        rank_pattern={
            "model.layers.0.self_attn.q_proj.lora_E": [True, False, False],
            "model.layers.1.self_attn.q_proj.lora_E": [True, True, True],
        },
        oracle=False,  # PEFT makes the layers with all ranks, and prunes them when a file is loaded
    ),
    adalora("conv1d of gpt2", gpt2, fan_in_fan_out=True),
    adalora("sequence classes", bert, task_type="SEQ_CLS"),
    adalora("t5", t5, task_type="SEQ_2_SEQ_LM"),
    adalora("convolutions", net, target_modules=["conv2", "mid"], modules_to_save=["head"], lora_dropout=0.3),
    ia3("defaults", llama),
    ia3(
        "outputs and inputs", llama, target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    ia3("no feed-forward layer", llama, target_modules=QV, feedforward_modules=[]),
    ia3("random", llama, target_modules=QV, feedforward_modules=Q, init_ia3_weights=False, silent=False),
    ia3("conv1d of gpt2", gpt2, fan_in_fan_out=True),
    ia3("sequence classes", bert, task_type="SEQ_CLS"),
    ia3("t5", t5, task_type="SEQ_2_SEQ_LM"),
    ia3("convolutions", net, target_modules=["conv2", "conv3"], feedforward_modules=["conv3"]),
    loha("defaults", llama),
    loha("all linear", llama, target_modules="all-linear", alpha=3, rank_dropout=0.3),
    loha("random", llama, target_modules=QV, init_weights=False, silent=False),
    loha("some layers", llama, target_modules=QV, exclude_modules=["v_proj"], layers_to_transform=[1]),
    loha("patterns", llama, target_modules=QV, rank_pattern={"q_proj": 3}, alpha_pattern={r".*1.*v_proj": 5}),
    loha("sequence classes", bert, task_type="SEQ_CLS"),
    loha("t5", t5, task_type="SEQ_2_SEQ_LM"),
    loha("convolutions", net, target_modules=["conv1", "conv2", "mid"], modules_to_save=["head"]),
    loha("cores", net, target_modules=["conv1", "conv2", "mid"], use_effective_conv2d=True, rank_dropout=0.2),
    loha("cores, random", pixels, use_effective_conv2d=True, init_weights=False, silent=False, **CONVS),
    lokr("defaults", llama),
    lokr("all linear", llama, target_modules="all-linear", alpha=3, rank_dropout=0.3),
    lokr("random", llama, target_modules=QV, init_weights=False, silent=False, rank_dropout=0.2),
    lokr("as lycoris", llama, target_modules=QV, init_weights="lycoris", rank_pattern={"q_proj": 4}),
    lokr(
        "scaled", llama, target_modules=QV, rank_dropout=0.3, rank_dropout_scale=True, layers_to_transform=1
    ),
    lokr("both", llama, target_modules=QV, decompose_both=True, decompose_factor=4),
    lokr("a factor that divides nothing", llama, target_modules=["up_proj"], decompose_factor=5),
    lokr("sequence classes", bert, task_type="SEQ_CLS", decompose_factor=2),
    lokr("convolutions", net, target_modules=["conv1", "conv2", "mid"], decompose_factor=2),
    lokr("one factor, as lycoris", net, target_modules=["conv2"], decompose_factor=1, init_weights="lycoris"),
    # PEFT takes the places of such a kernel for inputs.
    lokr("whole kernels", net, target_modules=["conv1"], r=8, modules_to_save=["head"], oracle=False),
    lokr("whole kernels in two dimensions", pixels, r=8, **CONVS),
    lokr("cores", net, decompose_factor=1, use_effective_conv2d=True, target_modules=["conv1", "conv2"]),
    lokr("cores, as lycoris", pixels, use_effective_conv2d=True, init_weights="lycoris", **CONVS),
    of("OFT", "defaults", llama),  # blocks of 32 inputs where there are 8
    of("OFT", "block size", llama, target_modules="all-linear", oft_block_size=4),
    of("OFT", "block number", llama, target_modules=QV, r=2, oft_block_size=0, layers_to_transform=[1]),
    of("OFT", "nearest block size", llama, target_modules=["down_proj"], oft_block_size=5),
    of("OFT", "exact", llama, target_modules=QV, oft_block_size=4, use_cayley_neumann=False),
    of("OFT", "two terms", llama, target_modules=QV, oft_block_size=4, num_cayley_neumann_terms=2),
    of("OFT", "three terms", llama, target_modules=QV, oft_block_size=4, num_cayley_neumann_terms=3),
    of("OFT", "seven terms", llama, target_modules=QV, oft_block_size=4, num_cayley_neumann_terms=7),
    of("OFT", "shared blocks", llama, target_modules=QV, oft_block_size=4, block_share=True),
    of("OFT", "dropout", llama, target_modules=["q_proj", "up_proj"], oft_block_size=2, module_dropout=0.5),
    of("OFT", "constrained", llama, target_modules=QV, oft_block_size=4, coft=True, eps=0.05),
    of("OFT", "random", llama, target_modules=QV, oft_block_size=4, init_weights=False, silent=False),
    of("OFT", "biases", llama, target_modules=Q, oft_block_size=4, bias="oft_only", keeps_base=False),
    of("OFT", "all biases", llama, target_modules=Q, oft_block_size=4, bias="all", keeps_base=False),
    of("OFT", "embeddings", llama, target_modules=["embed_tokens", "q_proj"], oft_block_size=4),
    of("OFT", "sequence classes", bert, task_type="SEQ_CLS", oft_block_size=4),
    of("OFT", "conv1d of gpt2", gpt2, oft_block_size=4, oracle=False),  # PEFT names it, but does not take it
    of("OFT", "pointwise convolution", pixels, target_modules=["point"], oft_block_size=2),
    # PEFT's adds up what overlaps between kernels, so that even a fresh adapter changes the outputs.
    of("OFT", "convolution", pixels, target_modules=["conv", "head"], oft_block_size=2, oracle=False),
    of("OFT", "dilated convolution", net, target_modules=["conv2"], oft_block_size=3, oracle=False),
    of("BOFT", "defaults", llama),
    of("BOFT", "all linear", llama, target_modules="all-linear", boft_block_size=2),
    of("BOFT", "block number", llama, target_modules=QV, boft_block_size=0, boft_block_num=2),
    of("BOFT", "two factors", llama, target_modules=QV, boft_n_butterfly_factor=2),
    of("BOFT", "three factors", llama, target_modules=Q, boft_block_size=2, boft_n_butterfly_factor=3),
    of("BOFT", "dropout", llama, target_modules=QV, boft_n_butterfly_factor=2, boft_dropout=0.5),
    of("BOFT", "random", llama, target_modules=QV, init_weights=False, silent=False),
    of("BOFT", "biases", llama, target_modules=Q, bias="boft_only", keeps_base=False),
    of("BOFT", "sequence classes", bert, task_type="SEQ_CLS"),
    of("BOFT", "conv1d of gpt2", gpt2, fan_in_fan_out=True, oracle=False),  # as with OFT
    of("BOFT", "convolutions", pixels, target_modules=["conv", "point"], boft_n_butterfly_factor=1),
    of("BOFT", "dilated convolution", net, target_modules=["conv2"], boft_block_size=3, oracle=False),
    of("LN_TUNING", "defaults", llama),
    of("LN_TUNING", "norms of gpt2", gpt2, exclude_modules=["ln_f"]),
    of("LN_TUNING", "norms and a head", bert, task_type="SEQ_CLS", target_modules=["LayerNorm"]),
    of("LN_TUNING", "norms by their class", bert, oracle=False),  # PEFT has no default for BERT
    of("LN_TUNING", "t5", t5, task_type="SEQ_2_SEQ_LM"),
    of("LN_TUNING", "another layer", net, target_modules=["mid", "norm"], modules_to_save=["head"]),
    of("LN_TUNING", "a module of modules", llama, target_modules=["mlp", "lm_head"]),
    of("MISS", "one matrix", llama, r=4),
    of(
        "MISS", "all linear", llama, target_modules="all-linear", r=3, miss_dropout=0.3
    ),  # 3 divides no inputs
    of(
        "MISS",
        "as wide as the layer",
        llama,
        target_modules=QV,
        r=8,
        exclude_modules=["layers.0.self_attn.v_proj"],
    ),
    of("MISS", "random", llama, target_modules=QV, r=4, init_weights=False, silent=False),
    of("MISS", "mini", llama, target_modules="all-linear", r=2, mini_r=2, init_weights="mini"),
    of("MISS", "mini, the last block cut", llama, target_modules=QV, r=3, mini_r=4, init_weights="mini"),
    of("MISS", "bat", llama, target_modules=QV, r=4, init_weights="bat", layers_to_transform=[1]),
    of(
        "MISS",
        "bat, all linear",
        llama,
        target_modules="all-linear",
        r=2,
        init_weights="bat",
        miss_dropout=0.3,
    ),
    of("MISS", "biases", llama, target_modules=Q, r=2, bias="MiSS_only", keeps_base=False),
    of("MISS", "all biases", llama, target_modules=Q, r=2, bias="all", keeps_base=False),
    of("MISS", "sequence classes", bert, task_type="SEQ_CLS", r=4),
    of("MISS", "t5", t5, task_type="SEQ_2_SEQ_LM", r=4),
    of("MISS", "conv1d of gpt2", gpt2, r=3, oracle=False),  # as with OFT
    of("MISS", "conv1d of gpt2, bat", gpt2, r=4, init_weights="bat", oracle=False),
    of("MISS", "linear", net, target_modules=["mid"], r=5, modules_to_save=["head"]),
    of("HRA", "defaults", llama),
    of("HRA", "all linear", llama, target_modules="all-linear", r=2),
    of("HRA", "more reflections than inputs", llama, target_modules=QV, r=12),
    of("HRA", "odd", llama, target_modules=QV, r=3, silent=False),
    of("HRA", "random", llama, target_modules=QV, r=4, init_weights=False, silent=False),
    of("HRA", "orthogonal", llama, target_modules=QV, r=4, apply_GS=True, silent=False),
    of("HRA", "biases", llama, target_modules=Q, r=2, bias="hra_only", keeps_base=False),
    of("HRA", "sequence classes", bert, task_type="SEQ_CLS", r=2),
    of("HRA", "conv1d of gpt2", gpt2, r=2, oracle=False),  # as with OFT
    of("HRA", "convolutions", pixels, target_modules=["conv", "point"], r=4),
    of("HRA", "dilated convolution", net, target_modules=["conv2"], r=2, oracle=False),
    of("SHIRA", "few", llama, r=2),
    of("SHIRA", "all linear", llama, target_modules="all-linear", r=1, random_seed=7),
    of("SHIRA", "random", llama, target_modules=QV, r=2, init_weights=False, silent=False),
    of("SHIRA", "sequence classes", bert, task_type="SEQ_CLS", r=1),
    of("SHIRA", "conv1d of gpt2", gpt2, r=2, fan_in_fan_out=True, oracle=False),  # as with OFT
    of("SHIRA", "linear", net, target_modules=["mid"], r=3, modules_to_save=["head"]),
    tokens("defaults", llama),
    tokens("tied", tied_llama),
    tokens("random", llama, init_weights=False, silent=False),
    tokens("embeddings and head", llama, target_modules=HEAD_AND_EMBEDDINGS),
    tokens("a tied head alone", tied_llama, target_modules=["lm_head"]),
    tokens(
        "tied, both named", tied_llama, target_modules=HEAD_AND_EMBEDDINGS, oracle=False
    ),  # PEFT's is not tied
    tokens("gpt2", gpt2),
    tokens("t5", t5, task_type="SEQ_2_SEQ_LM"),
    tokens("an encoder", bert),
    tokens("a head with a bias", masked_bert, oracle=False),  # PEFT forgets the bias
    tokens("an embedding", net, target_modules=["emb"]),
    of("VERA", "defaults", llama),
    of("VERA", "all linear", llama, target_modules="all-linear", r=4, vera_dropout=0.3, d_initial=0.4),
    of("VERA", "drawn again", llama, target_modules=["q_proj", "up_proj"], r=3, save_projection=False),
    of("VERA", "another key", llama, target_modules=QV, r=3, save_projection=False, projection_prng_key=5),
    of("VERA", "some layers", llama, target_modules=QV, r=3, layers_to_transform=[1]),
    of("VERA", "random", llama, target_modules=QV, r=3, init_weights=False, silent=False),
    of("VERA", "biases", llama, target_modules=Q, r=3, bias="vera_only", keeps_base=False),
    of("VERA", "all biases", llama, target_modules=Q, r=3, bias="all", keeps_base=False),
    of("VERA", "conv1d of gpt2", gpt2, r=3, fan_in_fan_out=True),
    of("VERA", "sequence classes", bert, r=3, task_type="SEQ_CLS"),
    of("VERA", "t5", t5, r=3, task_type="SEQ_2_SEQ_LM"),
    of("VERA", "linear", net, target_modules=["mid"], r=3, modules_to_save=["head"]),
    # PEFT saves the bases once more under the name of every layer, and says of our files that these are missing.
    of("RANDLORA", "defaults", llama, oracle=False),
    of("RANDLORA", "saved bases", llama, target_modules="all-linear", r=3, oracle=False),
    randlora("all linear", llama, target_modules="all-linear", randlora_dropout=0.3, randlora_alpha=20),
    randlora("another key", llama, target_modules=QV, projection_prng_key=5),
    randlora("some layers", llama, target_modules=["gate_proj", "down_proj"], layers_to_transform=1),
    randlora("one base", llama, target_modules=QV, r=8),
    randlora("sparse", llama, target_modules=["q_proj", "down_proj"], sparse=True),
    randlora("very sparse", llama, target_modules=QV, r=4, very_sparse=True),
    randlora("random", llama, target_modules=QV, init_weights=False, silent=False),
    randlora("biases", llama, target_modules=Q, bias="randlora_only", keeps_base=False),
    randlora("conv1d of gpt2", gpt2, fan_in_fan_out=True),
    randlora("sequence classes", bert, task_type="SEQ_CLS"),
    randlora("linear", net, target_modules=["mid"], modules_to_save=["head"]),
    vblora("defaults", llama),
    vblora("all linear", llama, target_modules="all-linear", vblora_dropout=0.3, topk=3),
    vblora("short vectors", llama, target_modules=QV, r=2, vector_length=2),
    vblora("some layers", llama, target_modules=QV, layers_to_transform=[1], init_logits_std=1.0),
    vblora("biases", llama, target_modules=Q, bias="vblora_only", keeps_base=False),
    vblora("conv1d of gpt2", gpt2, fan_in_fan_out=True),
    vblora("sequence classes", bert, task_type="SEQ_CLS"),
    vblora("linear", net, target_modules=["mid"], vector_length=2, modules_to_save=["head"]),
    fourierft("some frequencies", llama),
    fourierft("all linear", llama, target_modules="all-linear", n_frequency=20, scaling=40.0),
    fourierft("all frequencies", llama, target_modules=Q, n_frequency=64, init_weights=True, silent=True),
    fourierft("another seed", llama, target_modules=QV, random_loc_seed=0),
    fourierft(
        "patterns", llama, target_modules=QV, n_frequency_pattern={"v_proj": 5, r"layers\.1\..*q_proj": 9}
    ),
    fourierft("biases", llama, target_modules=Q, bias="fourier_only", keeps_base=False),
    fourierft("conv1d of gpt2", gpt2, fan_in_fan_out=True),
    fourierft("sequence classes", bert, task_type="SEQ_CLS", init_weights=True, silent=True),
    fourierft("linear", net, target_modules=["mid"], modules_to_save=["head"]),
]


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Arguments for a case's model."""
    tokens = torch.arange(14).reshape(2, 7) % 11
    if isinstance(model, Net | Pixels | Stacks):
        return {"tokens": torch.arange(16).reshape(2, 8) % 11}
    if isinstance(model, T5ForConditionalGeneration):
        return {"input_ids": tokens, "decoder_input_ids": tokens}
    return {"input_ids": tokens}


@cache
def _prototype(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(7)
    model = make().to(dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def build(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A case's base model: the same every time, with biases that are not zero."""
    return copy.deepcopy(_prototype(case.build, dtype))


def outputs(model: nn.Module, arguments: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model gives, without its dropout."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result = model(**arguments)
    model.train(was_training)
    return result if isinstance(result, torch.Tensor) else result.logits


def shake(model: nn.Module, seed: int = 3) -> None:
    """Moves every trained weight a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter), alpha=0.1)
