"""What programs do with an adapter: every rule with one that breaks it, and the commands that serve the others."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from peftcli.run.lint.finding import Finding
from peftcli.run.lint.lint import TARGETS, lint
from peftcli.run.lint.vllm import RANKS
from tests.methods.models import gpt2, llama, net
from tests.run.adapters import WEIGHTS, change_config, change_tensors, saved

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "run", target_modules=["q_proj", "v_proj"])


def errors(folder: Path, target: str) -> dict[str, Finding]:
    return {finding.where: finding for finding in lint(folder, target).findings if finding.is_error}


def remarks(folder: Path, target: str) -> dict[str, Finding]:
    return {finding.where: finding for finding in lint(folder, target).findings if not finding.is_error}


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_adapter_for_a_model_of_the_hub_loads_everywhere(folder, target):
    linted = lint(folder, target)
    assert linted.loads
    assert linted.findings == []
    assert linted.as_dict()["ok"] is True


def test_the_commands_serve_it(folder):
    assert lint(folder, "vllm").commands == [
        f"vllm serve org/base --enable-lora --lora-modules run={folder} --max-lora-rank 8"
    ]
    assert lint(folder, "llamacpp").commands == [
        "python convert_hf_to_gguf.py --remote org/base --outfile base.gguf",
        f"python convert_lora_to_gguf.py --base-model-id org/base --outfile {folder}/adapter.gguf {folder}",
        f"llama-server -m base.gguf --lora {folder}/adapter.gguf",
    ]


def test_pefts_command_is_python_that_runs(folder, tmp_path):
    base = tmp_path / "base"
    llama().save_pretrained(base)
    change_config(folder, base_model_name_or_path=str(base), task_type="CAUSAL_LM")
    (line,) = lint(folder, "peft").commands
    names = {}
    exec(line, names)
    assert isinstance(names["model"], peft.PeftModelForCausalLM)


def test_names_with_spaces_and_quotes_are_quoted(tmp_path):
    folder = saved(tmp_path / "it's a run", target_modules=["q_proj"])
    (command,) = lint(folder, "vllm").commands
    parts = shlex.split(command)
    assert parts[parts.index("--lora-modules") + 1] == f"it-s-a-run={folder}"
    change_config(folder, use_dora=True)
    advice = errors(folder, "vllm")["use_dora"].advice
    assert shlex.split(advice.removeprefix("merge it: "))[:4] == [
        "peftcli", "merge", "--adapter", str(folder)
    ]  # fmt: skip


def test_the_template_of_the_training_is_passed_on(folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (command,) = lint(folder, "vllm").commands
    assert command.endswith(f"--chat-template {folder}/chat_template.jinja")


@pytest.mark.parametrize(
    ("rank", "passed"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (257, 320), (512, 512)]
)
def test_vllm_is_given_the_next_rank_that_it_has(tmp_path, rank, passed):
    folder = saved(tmp_path / "run", target_modules=["q_proj"], r=rank)
    (command,) = lint(folder, "vllm").commands
    assert command.endswith(f"--max-lora-rank {passed}")
    assert passed in RANKS


def test_vllm_takes_no_higher_rank(tmp_path):
    folder = saved(tmp_path / "run", target_modules=["q_proj"], r=513)
    assert "up to 512" in errors(folder, "vllm")["r"].message
    assert lint(folder, "vllm").commands == []
    assert lint(folder, "llamacpp").loads


# What cannot be loaded.


def without_keys(tensors):
    return {key: tensor for key, tensor in tensors.items() if key != f"{LAYER}.lora_B.weight"}


def with_another_rank(tensors):
    return tensors | {f"{LAYER}.lora_A.weight": torch.ones(3, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 3)}


def that_have_no_product(tensors):
    return tensors | {f"{LAYER}.lora_B.weight": torch.ones(8, 3)}


def with_the_adapters_name(tensors):
    return {key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}


def without_prefix(tensors):
    return {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}


def with_a_bias(tensors):
    return tensors | {f"{LAYER}.base_layer.bias": torch.ones(8)}


def none_at_all(tensors):
    return {"base_model.model.x": torch.ones(1)}


def not_numbers(tensors):
    return tensors | {f"{LAYER}.lora_A.weight": torch.full((8, 8), math.nan)}


A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
SHORT = LAYER.removeprefix("base_model.model.")


@pytest.mark.parametrize(
    ("change", "where", "targets"),
    [
        (without_keys, SHORT, {"vllm", "llamacpp", "peft"}),
        (with_another_rank, SHORT, {"vllm", "llamacpp", "peft"}),
        (that_have_no_product, SHORT, {"vllm", "llamacpp", "peft"}),
        (none_at_all, WEIGHTS, {"vllm", "llamacpp", "peft"}),
        (with_the_adapters_name, "lora_A.default.weight (and 7 more)", {"vllm", "llamacpp", "peft"}),
        (without_prefix, "lora_A.weight (and 7 more)", {"peft"}),
        (with_a_bias, "base_layer.bias", {"vllm", "llamacpp"}),
        (not_numbers, A, {"vllm", "llamacpp", "peft"}),
    ],
)
def test_tensors_that_a_program_does_not_take(folder, change, where, targets):
    change_tensors(folder, change)
    for target in TARGETS:
        found = errors(folder, target)
        assert any(name.endswith(where) for name in found) == (target in targets), found


@pytest.mark.parametrize(
    ("field", "value", "targets"),
    [
        ("use_dora", True, {"vllm", "llamacpp"}),
        ("bias", "all", {"vllm"}),
        ("modules_to_save", ["lm_head"], {"vllm"}),
        ("fan_in_fan_out", True, {"llamacpp"}),
        ("init_lora_weights", "pissa", {"vllm", "llamacpp"}),
        ("init_lora_weights", "pissa_niter_4", {"vllm", "llamacpp"}),
        ("init_lora_weights", "olora", {"vllm", "llamacpp"}),
        ("init_lora_weights", "loftq", {"vllm", "llamacpp"}),
        ("init_lora_weights", "corda", {"vllm", "llamacpp", "peft"}),
        ("init_lora_weights", "lora_ga", {"vllm", "llamacpp", "peft"}),
        ("init_lora_weights", "eva", set()),
        ("init_lora_weights", "gaussian", set()),
        ("layer_replication", [[0, 2]], {"vllm", "llamacpp"}),
        ("alora_invocation_tokens", [1, 2], {"vllm"}),
        ("use_rslora", True, set()),
        ("lora_dropout", 0.5, set()),
        ("r", -1, {"vllm", "llamacpp", "peft"}),
        ("r", "8", {"vllm", "llamacpp", "peft"}),
        ("lora_alpha", [], {"vllm", "llamacpp", "peft"}),
        ("peft_type", "MAGIC", {"vllm", "llamacpp", "peft"}),
    ],
)
def test_fields_that_a_program_does_not_take(folder, field, value, targets):
    change_config(folder, **{field: value})
    for target in TARGETS:
        assert (field in errors(folder, target)) == (target in targets), target
        assert lint(folder, target).loads == (target not in targets)


def test_what_vllm_and_the_converter_cannot_do_without_is_named(folder):
    change_config(folder, lora_alpha=None)
    assert "is missing" in errors(folder, "vllm")["lora_alpha"].message
    assert "is missing" in errors(folder, "llamacpp")["lora_alpha"].message
    assert lint(folder, "peft").loads
    change_config(folder, lora_alpha=8, target_modules=None)
    assert errors(folder, "vllm").keys() == {"target_modules"}


def test_dora_is_seen_in_the_tensors_too(tmp_path):
    folder = saved(tmp_path, target_modules=["q_proj"], use_dora=True)
    for target in ("vllm", "llamacpp"):
        found = errors(folder, target)
        assert "use_dora" in found
        assert any("lora_magnitude_vector" in where for where in found)
    assert lint(folder, "peft").loads


@pytest.mark.parametrize(
    ("method", "settings"), [("IA3", {"feedforward_modules": []}), ("LOKR", {"r": 2}), ("VERA", {"r": 2})]
)
def test_other_methods_load_in_peft_only_and_can_be_merged(tmp_path, method, settings):
    folder = saved(tmp_path, peft_type=method, target_modules=["q_proj"], **settings)
    assert lint(folder, "peft").loads
    for target in ("vllm", "llamacpp"):
        assert "merge it" in errors(folder, target)["peft_type"].advice


def test_prompts_cannot_even_be_merged(tmp_path):
    folder = saved(tmp_path, peft_type="PROMPT_TUNING", task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert errors(folder, "vllm")["peft_type"].advice == "serve it with PEFT"
    assert lint(folder, "peft").loads


def test_convolutions_are_no_linear_layers(tmp_path):
    folder = saved(tmp_path, net(), target_modules=["conv1", "mid"], r=2)
    for target in ("vllm", "llamacpp"):
        assert errors(folder, target).keys() == {"conv1"}
    assert lint(folder, "peft").loads


def test_the_layers_of_gpt2_are_turned_around_by_the_converter(tmp_path):
    assert errors(saved(tmp_path, gpt2()), "llamacpp").keys() == {"fan_in_fan_out"}


def test_embeddings_and_heads_are_for_some_models_only(tmp_path):
    folder = saved(tmp_path, target_modules=["embed_tokens", "lm_head"], r=2)
    assert "embedding_modules" in next(iter(remarks(folder, "vllm").values())).message
    assert "ties" in remarks(folder, "llamacpp")["lm_head"].message
    # Whole embeddings stand beside their adapters; both pass them over.
    assert any(key.endswith("base_layer.weight") for key in load_file(folder / WEIGHTS))
    assert lint(folder, "vllm").loads
    assert lint(folder, "llamacpp").loads


# What is loaded, and scaled otherwise than in training.


def scaled_as_in_training(folder: Path, scaling: dict[str, float]) -> bool:
    """Whether PEFT scales each layer so: what the rules below take for true."""
    model = peft.PeftModel.from_pretrained(llama(), folder)
    found = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    return found == pytest.approx(scaling)


def test_vllm_knows_one_scaling(tmp_path):
    names = [f"model.layers.{at}.self_attn.q_proj" for at in (0, 1)]
    other_rank = saved(
        tmp_path / "rank", target_modules=["q_proj"], r=4, rank_pattern={"layers.1.self_attn.q_proj": 2}
    )
    assert scaled_as_in_training(other_rank, {names[0]: 2, names[1]: 4})
    assert names[1] in errors(other_rank, "vllm")["rank_pattern"].message
    other_alpha = saved(
        tmp_path / "alpha", target_modules=["q_proj"], alpha_pattern={"layers.1.self_attn.q_proj": 2}
    )
    assert scaled_as_in_training(other_alpha, {names[0]: 1, names[1]: 0.25})
    assert names[1] in errors(other_alpha, "vllm")["alpha_pattern"].message
    # As `save_as_lora` writes it: ranks differ, and alphas with them.
    both = saved(
        tmp_path / "both", target_modules=["q_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 20}, alpha_pattern={"layers.1.self_attn.q_proj": 20},
    )  # fmt: skip
    assert scaled_as_in_training(both, dict.fromkeys(names, 1))
    assert lint(both, "vllm").commands[0].endswith("--max-lora-rank 32")


def test_llamacpp_knows_one_alpha_and_every_rank(tmp_path):
    pattern = {"layers.1.self_attn.q_proj": 2}
    assert lint(saved(tmp_path / "rank", target_modules=["q_proj"], rank_pattern=pattern), "llamacpp").loads
    alpha = saved(tmp_path / "alpha", target_modules=["q_proj"], alpha_pattern=pattern)
    assert "one lora_alpha" in errors(alpha, "llamacpp")["alpha_pattern"].message


def test_llamacpp_is_told_the_factor_that_rank_stabilised_adapters_need(tmp_path):
    folder = saved(tmp_path, target_modules=["q_proj"], r=4, lora_alpha=6, use_rslora=True)
    linted = lint(folder, "llamacpp")
    assert linted.loads
    assert remarks(folder, "llamacpp").keys() == {"use_rslora"}
    # 6 / 4 there, 6 / √4 in training.
    assert linted.commands[-1] == f"llama-server -m base.gguf --lora-scaled {folder}/adapter.gguf:2"
    mixed = saved(
        tmp_path / "mixed", target_modules=["q_proj", "v_proj"], use_rslora=True, rank_pattern={"v_proj": 2}
    )
    assert errors(mixed, "llamacpp").keys() == {"use_rslora"}


def test_experts_beside_each_other_are_of_the_rank_that_the_config_says(tmp_path):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 8))

        def forward(self, x):
            return x @ self.gate_up_proj[0].T

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = Experts()

        def forward(self, x):
            return self.experts(x)

    folder = saved(tmp_path, Block(), target_modules=[], target_parameters=["experts.gate_up_proj"], r=2)
    assert load_file(folder / WEIGHTS)["base_model.model.experts.lora_A.weight"].shape == (6, 8)
    assert lint(folder, "vllm").commands[0].endswith("--max-lora-rank 8")


# The base, and PEFT's own.


def test_a_base_that_is_not_there_is_to_be_filled_in(folder, tmp_path):
    for name in (str(tmp_path / "gone"), "./gone", "package://nowhere/model", "~nobody/model", "gone.gguf"):
        change_config(folder, base_model_name_or_path=name)
        for target in TARGETS:
            assert "there is no" in remarks(folder, target)["base_model_name_or_path"].message
            assert "BASE" in " ".join(lint(folder, target).commands)
    change_config(folder, base_model_name_or_path=None)
    assert "names no base" in remarks(folder, "vllm")["base_model_name_or_path"].message


def test_a_gguf_is_served_by_what_takes_it(folder, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    change_config(folder, base_model_name_or_path=str(file), task_type="CAUSAL_LM")
    assert lint(folder, "llamacpp").commands == [
        f"python convert_lora_to_gguf.py --base BASE --outfile {folder}/adapter.gguf {folder}",
        f"llama-server -m {file} --lora {folder}/adapter.gguf",
    ]
    assert "config.json" in remarks(folder, "llamacpp")["base_model_name_or_path"].message
    assert "gguf_file='model.gguf'" in lint(folder, "peft").commands[0]
    assert "GGUF" in remarks(folder, "vllm")["base_model_name_or_path"].message


def test_peft_is_asked_for_the_release_that_knows_the_fields(folder):
    change_config(folder, brand_new_field=3, peft_version="0.99.1")
    assert remarks(folder, "peft").keys() == {"brand_new_field", "peft_version"}
    assert lint(folder, "peft").loads
    assert "brand_new_field" not in remarks(folder, "vllm")
    for known in ("0.21.2", "0.9.0", "0.21.3.dev0", "", "strange"):
        change_config(folder, peft_version=known)
        assert "peft_version" not in remarks(folder, "peft")


def test_a_random_decomposition_is_not_found_again(folder):
    change_config(folder, init_lora_weights="pissa_niter_4")
    assert "random" in remarks(folder, "peft")["init_lora_weights"].message


def test_the_class_of_a_task_without_one_is_the_bases_own(tmp_path):
    folder = saved(tmp_path, target_modules=["q_proj"])
    assert "LlamaForCausalLM.from_pretrained('org/base')" in lint(folder, "peft").commands[0]
    change_config(folder, auto_mapping={"base_model_class": "x; import os", "parent_library": "os"})
    assert "import os" not in lint(folder, "peft").commands[0]


def test_the_result_is_json(folder):
    change_config(folder, use_dora=True)
    content = json.loads(json.dumps(lint(folder, "vllm").as_dict()))
    assert content["ok"] is False
    assert content["commands"] == []
    assert content["findings"][0].keys() == {"severity", "where", "message", "advice"}
