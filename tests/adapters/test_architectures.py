"""Every text architecture of Transformers takes an adapter without being told where: it trains, is saved and merged.

Each is built offline from its own config, made tiny by rules on the names of its sizes; what the rules cannot know
stands in CORRECTIONS, and what cannot be built at all in UNBUILDABLE, with the reason that a test checks.
"""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.defaults import BY_ARCHITECTURE
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import PeftModel, get_peft_model

VOCABULARY = 96
IMAGE = 95
# What the names of a config's fields are set to, where their value is larger.
SIZES = {
    32: """hidden_size d_model n_embd emb_dim dim embed_dim embedding_size word_embed_proj_dim encoder_hidden_size
        hidden_dim text_hidden_size out_hidden_size output_dim vision_output_dim projection_dim lru_width input_size
        projector_hidden_size hidden_size_global mamba_d_ssm intermediate_size moe_intermediate_size encoder_ffn_dim
        shared_expert_intermediate_size decoder_ffn_dim ffn_dim d_ff dff dim_ff n_inner ffn_hidden_size mlp_dim
        shared_intermediate_size dense_intermediate_size intermediate_size_mlp d_inner expert_ffn_hidden_size
        moe_shared_expert_intermediate_size shared_experts_intermediate_size
        conv_dim attention_hidden_size decoder_hidden_size adapter_in_dim adapter_out_dim
        adapter_input_size audio_hidden_size thinker_hidden_size""",
    4: """num_attention_heads encoder_attention_heads decoder_attention_heads n_head n_heads num_heads attention_heads
        mamba_n_heads mamba_num_heads linear_num_value_heads linear_num_heads swa_num_attention_heads
        linear_num_key_heads num_experts n_routed_experts num_local_experts moe_num_experts""",
    2: """kv_n_heads num_kv_heads num_query_tokens num_experts_per_tok moe_topk moe_top_k num_experts_per_token moe_k
        num_hidden_layers encoder_layers decoder_layers num_layers n_layer n_layers num_decoder_layers depth layers
        num_encoder_layers num_blocks speech_encoder_layers t2u_encoder_layers t2u_decoder_layers""",
    8: """head_dim d_kv v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels d_head linear_key_head_dim
        linear_value_head_dim linear_head_dim swa_head_dim global_head_dim index_head_dim mamba_head_dim
        swa_v_head_dim""",
    16: "qk_head_dim kv_lora_rank q_lora_rank o_lora_rank mamba_d_state state_size ssm_state_size index_topk",
    64: """max_position_embeddings n_positions max_source_positions max_target_positions n_ctx max_seq_len
        max_sequence_length""",
    1: "n_group topk_group",
    28: "image_size",
    14: "patch_size",
}
LIMITS = {name: limit for limit, names in SIZES.items() for name in names.split()}
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
GROUPED = {"num_key_value_heads": "num_attention_heads", "swa_num_key_value_heads": "swa_num_attention_heads"}

# What the rules cannot know: fields by the model_type of a config or sub-config, or of the one that it is part of.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
AXES = {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}}
HEADS = {"head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
TWO_KINDS = ["linear_attention", "hybrid"] * 2
CORRECTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "topk_group": 1},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": IMAGE},
    "blt": {"use_cache": False},  # its cache asks for num_hidden_layers, which the config lacks
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "chameleon_vqgan": {"base_channels": 32},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "cosmos3_edge_text": AXES,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 90, "<|extra_200|>": 91}},
    "emu3_vqgan": {"base_channels": 32},
    "encoder-decoder": {"decoder": {"add_cross_attention": True, "is_decoder": True}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}, "moe_k": 2},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 32},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "glm4v_text": AXES,
    "glm_ocr_text": AXES,
    "gptj": {"rotary_dim": 4},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": HEADS,
    "hunyuan_vl_text": HEADS | AXES,
    "instructblip": {"image_token_index": IMAGE},
    "instructblipvideo": {"video_token_index": IMAGE},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kosmos-2": {"latent_query_num": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16, "n_groups": 2},
    "mimi": {"upsample_groups": 32},
    "ministral": HEADS,
    "mistral4": {"head_dim": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2, "mamba_head_dim": 16},
    "neomme": {"head_dim": 16},
    "paddleocr_vl_text": AXES,
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    "pp_formulanet_vision": {"post_conv_out_channels": 32},
    "qwen2_5_omni_text": AXES,
    "qwen2_5_vl_text": AXES,
    "qwen2_vl_text": AXES,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "radio": {"video_temporal_patch_size": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "step3p5": {"sliding_window": 16},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2, "depths": (1, 1), "downsampling_ratios": (2,)},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": TWO_KINDS,
        "num_hidden_layers": 4,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
    }
    | {"attention_hidden_size": 64, "n_mamba_heads": 2},
    "zamba2": {
        "layers_block_type": TWO_KINDS,
        "num_hidden_layers": 4,
        "n_mamba_heads": 4,
        "attention_head_dim": 16,
    }
    | {"attention_hidden_size": 64, "mamba_headdim": 16},
}
# What a model's forward needs besides tokens: numbers where the name does not say that they are positions.
PIXELS = {"pixel_values": (2, 3, 28, 28)}
INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "blip": PIXELS,
    "blip-2": PIXELS,
    "idefics": {"pixel_values": (2, 1, 3, 28, 28), "image_attention_mask": (2, 12, 1)},
    "instructblip": PIXELS | {"qformer_input_ids": (2, 5)},
    "instructblipvideo": {"pixel_values": (2, 4, 3, 28, 28), "qformer_input_ids": (2, 5)},
    "kosmos-2": PIXELS | {"image_embeds_position_mask": (2, 12)},
    "molmo2": {"mm_token_type_ids": (2, 12)},
    "pix2struct": {"flattened_patches": (2, 8, 770)},
    "pp_formulanet": PIXELS,
    "udop": {"bbox": (2, 12, 4)},
    "vision-encoder-decoder": PIXELS,
    "voxtral_realtime": {"input_features": (2, 128, 96)},
}
# How many of the first tokens stand for the image.
IMAGE_TOKENS = {"blip-2": 2, "instructblip": 2, "instructblipvideo": 8}
# Layers that these inputs do not reach: a decoder's look at an encoder that is not there, global or entity tokens.
IDLE = re.compile(
    r"encoder_attn|cross_?attn|cross_?attention|_global$|w2e_|e2w_|e2e_|patcher|encoder\.language_model\.layers\.1\.self_attn\.q"
)
# Why an architecture is left out, and the error that says so.
UNBUILDABLE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("fast_vlm", "gemma3n", "perception_lm"), ("its vision tower is timm's", "requires the timm")
    ),
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), ("it writes sound, and not from its whole config", "dropout")
    ),
    **dict.fromkeys(
        ("qwen2_5_omni", "qwen3_omni_moe"),
        ("a pair of models that only generates", 'required "forward"|Talker'),
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        (
            "they draft on a larger model's states and caches; by their default config they are no whole",
            "hidden_size_per_layer_input|layer types producing",
        ),
    ),
    "evolla": ("Transformers' auto class does not know its config", "Unrecognized configuration class"),
    "ibert": ("its linear layers are QuantLinear, which pass scales along", "no default for ibert"),
    "kyutai_speech_to_text": ("it reads codes of sound", "must match the size"),
    "mra": ("without its CUDA kernel its attention is zero", "4 of 4 did not move"),
    "pi0": ("it moves a robot", "'state'"),
}
MAPPINGS = {
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForMultimodalLM": modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}
# (model_type, class) -> the auto class that makes it: many stand in several mappings.
ENTRIES = {
    (model_type, name): auto
    for auto, mapping in reversed(MAPPINGS.items())
    for model_type, name in mapping.items()
}


def shrink(config: PreTrainedConfig, changes: dict[str, Any] | None = None) -> PreTrainedConfig:
    """A config of the same kind with small sizes, and one layer of each kind that the model mixes."""
    changes = CORRECTIONS.get(config.model_type, {}) | (changes or {})
    old = vars(config)
    layers = next((old[name] for name in DEPTHS if isinstance(old.get(name), int)), 0)
    by_layer = {
        name: value
        for name, value in old.items()
        if isinstance(value, list | tuple) and len(value) == layers > 1
    }
    first: dict[str, int] = {}  # the first layer of each kind
    for i in range(layers):
        first.setdefault(str([value[i] for value in by_layer.values()]), i)
    kept = sorted(first.values()) if len(first) > 1 else [0, 1]
    new: dict[str, Any] = {}
    for name, value in old.items():
        if isinstance(value, PreTrainedConfig):
            new[name] = shrink(value, changes.get(name))
        elif name in by_layer:
            new[name] = [value[i] for i in kept]
        elif by_layer and name in DEPTHS:
            new[name] = len(kept)
        elif name == "rope_parameters":
            new[name] = _shrink_rope(value)
        elif name.endswith("layerdrop"):
            new[name] = 0.0
        elif type(value) is int and not name.startswith(
            "_"
        ):  # unchanged too: the whole may want other defaults
            new[name] = _shrink_size(name, value, old)
    return type(config)(
        **new | {name: value for name, value in changes.items() if name not in config.sub_configs}
    )


def _shrink_size(name: str, value: int, others: dict[str, Any]) -> int:
    if name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
        return VOCABULARY - 1 - value % 16
    if "vocab" in name:
        return min(value, VOCABULARY)
    if name in GROUPED:
        return 4 if value == others.get(GROUPED[name]) else min(value, 2)
    return min(value, LIMITS.get(name, value))


def _shrink_rope(value: Any) -> Any:
    """Rotations of three axes share half of a head's 8 dimensions."""
    if not isinstance(value, dict):
        return value
    short = {key: _shrink_rope(item) for key, item in value.items()}
    return short | {"mrope_section": [2, 1, 1]} if value.get("mrope_section") else short


def build(model_type: str, auto: str) -> nn.Module:
    torch.manual_seed(0)
    config = shrink(CONFIG_MAPPING[model_type]())
    if auto == "AutoModelForCausalLM" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    model = getattr(transformers, auto).from_config(config).eval()
    for parameter in model.parameters():
        if not parameter.any():  # gates and outputs that start at zero would hide what is before them
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(model: Any, model_type: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 40, (2, 12), generator=generator)
    tokens[:, : IMAGE_TOKENS.get(model_type, 0)] = IMAGE
    given = {}
    if "input_ids" in inspect.signature(model.forward).parameters:
        given["input_ids"] = tokens
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens.flip(1)
    for name, shape in INPUTS.get(model_type, {}).items():
        given[name] = torch.rand(shape, generator=generator)
        if name.endswith("_ids"):
            given[name] = torch.zeros(shape, dtype=torch.long)
        elif name.endswith("_mask"):
            given[name] = torch.arange(given[name].numel()).view(shape) % 12 < 2
    return given


def logits(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(2)  # some attention is random
    return model(**given).logits


def evaluate(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return logits(model.eval(), given)


def train(model: nn.Module, given: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(2):
        scores = logits(model, given).flatten(0, -2)
        loss = F.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[-1])
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapted(model: nn.Module) -> dict[str, AdapterLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}


def round_trip(model_type: str, auto: str, folder: Path) -> None:
    base = build(model_type, auto)
    given = inputs(base, model_type)
    fresh, before = copy.deepcopy(base), evaluate(base, given)
    model = get_peft_model(base, LoraConfig())
    if model_type == "reformer":  # reversible layers
        base.enable_input_require_grads()
    train(model, given)
    layers = adapted(model)
    still = [
        name
        for name, layer in layers.items()
        if not IDLE.search(name) and not layer.lora_B["default"].weight.any()
    ]
    assert not still or model_type in BY_ARCHITECTURE, (
        f"{len(still)} of {len(layers)} did not move: {still[:3]}"
    )
    after = evaluate(model, given)
    effect = (after - before).abs().max()
    assert effect > 1e-4
    model.save_pretrained(folder)
    assert evaluate(PeftModel.from_pretrained(fresh, folder), given).equal(after)
    merged = model.merge_and_unload()
    assert not adapted(merged)
    assert (evaluate(merged, given) - after).abs().max() < 0.01 * effect


def cases(*, left_out: bool) -> list[Any]:
    return [
        pytest.param(
            model_type,
            auto,
            id=f"{model_type}-{kind}",
        )
        for (model_type, kind), auto in ENTRIES.items()
        if (model_type in UNBUILDABLE) is left_out
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "auto"), cases(left_out=False))
def test_every_architecture_is_adapted_trained_saved_loaded_and_merged(
    model_type: str, auto: str, tmp_path: Path
):
    round_trip(model_type, auto, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "auto"), cases(left_out=True))
def test_what_is_left_out_still_fails_for_its_reason(model_type: str, auto: str, tmp_path: Path):
    with pytest.raises(Exception, match=UNBUILDABLE[model_type][1]):
        round_trip(model_type, auto, tmp_path)


def test_no_line_of_the_tables_is_dead():
    known = {model_type for model_type, _ in ENTRIES}
    assert known.issuperset([*UNBUILDABLE, *INPUTS, *IMAGE_TOKENS])
    assert set(CONFIG_MAPPING).issuperset(CORRECTIONS)
