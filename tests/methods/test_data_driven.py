"""Starts that rows decide, as a library: EVA, LoRA-GA and CorDA find what PEFT finds in the same batches."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig as TheirCordaConfig
from peft.tuners.lora.corda import preprocess_corda as their_preprocess_corda
from torch import nn

from peftcli import (
    CordaConfig,
    EvaConfig,
    LoraConfig,
    LoraGAConfig,
    PeftModel,
    get_eva_state_dict,
    get_peft_model,
    initialize_lora_eva_weights,
    preprocess_corda,
    preprocess_loraga,
)
from peftcli.adapters.base import AdapterLayer
from peftcli.errors import AdapterConfigError, AdapterError, PeftWarning
from peftcli.methods.lora import eva as eva_module
from peftcli.methods.lora.rows import by_row, kept, token_masks
from tests.methods.cases import outputs
from tests.methods.models import bert, gpt2, llama

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "up_proj", "gate_proj", "down_proj"]


def wide() -> nn.Module:
    return llama(hidden_size=16, intermediate_size=24)


def made(build: Callable[[], nn.Module] = wide) -> nn.Module:
    torch.manual_seed(0)
    return build()


def batches(number: int = 4) -> list[dict[str, torch.Tensor]]:
    """Rows of several lengths, padded on the right, of which some tokens have no label."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(number):
        ids = torch.randint(0, 23, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 9:] = mask[2, 5:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :2] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def shaken(model: Any) -> Any:
    """With a B that does something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    return model


def same(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    """Parameters have the same names, gradients and values."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=tolerance)


# EVA.


def eva(**settings) -> dict[str, Any]:
    return {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": LINEAR,
        "init_lora_weights": "eva",
        "eva_config": {},
    } | settings


def eva_pair(build: Callable[[], nn.Module] = wide, **settings) -> tuple[Any, Any]:
    """The same base with an adapter of ours, and of PEFT's."""
    fields = eva(**settings)
    ours = get_peft_model(
        made(build), LoraConfig(**fields | {"eva_config": EvaConfig(**fields["eva_config"])})
    )
    with warnings.catch_warnings():
        # PEFT recommends low_cpu_mem_usage for it.
        warnings.simplefilter("ignore", UserWarning)
        theirs = peft.get_peft_model(
            made(build), peft.LoraConfig(**fields | {"eva_config": peft.EvaConfig(**fields["eva_config"])})
        )
    return ours, theirs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eva_config": {"rho": 1.0}},
        {"eva_config": {"rho": 3.0, "adjust_scaling_factors": False}},
        {"eva_config": {"use_label_mask": False, "tau": 0.9}},
        {"r": 1, "eva_config": {"rho": 4.0}},  # with layers that get none
        {"rank_pattern": {"q_proj": 3, "down_proj": 1}, "alpha_pattern": {"o_proj": 9}},
        {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
        {"use_rslora": True, "lora_dropout": 0.1},
        {"target_modules": ["o_proj", "down_proj"], "eva_config": {"whiten": True}},
    ],
)
def test_eva_finds_the_components_and_ranks_that_peft_finds(settings: dict[str, Any]):
    ours, theirs = eva_pair(**settings)
    one = get_eva_state_dict(ours, batches())
    other = peft.get_eva_state_dict(theirs, batches(), show_progress_bar=False)
    assert one.keys() == other.keys()
    for name, components in one.items():
        torch.testing.assert_close(components, other[name], rtol=0, atol=1e-10)
    initialize_lora_eva_weights(ours, eva_state_dict=one)
    peft.initialize_lora_eva_weights(theirs, eva_state_dict=other)
    same(ours, theirs)
    config, their_config = ours.peft_config["default"], theirs.peft_config["default"]
    assert config.rank_pattern == their_config.rank_pattern
    assert config.alpha_pattern == their_config.alpha_pattern
    arguments = {"input_ids": batches()[0]["input_ids"]}
    torch.testing.assert_close(
        outputs(shaken(ours), arguments), outputs(shaken(theirs), arguments), rtol=0, atol=2e-6
    )


def test_eva_on_gpt2_s_conv1d_is_peft_s():
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    ours, theirs = eva_pair(gpt2, **settings)
    initialize_lora_eva_weights(ours, batches())
    peft.initialize_lora_eva_weights(theirs, batches(), show_progress_bar=False)
    same(ours, theirs, 1e-6)


def test_a_bare_model_and_one_with_the_adapter_give_the_same_components():
    config = LoraConfig(**eva())
    bare = get_eva_state_dict(made(), batches(), config)
    adapted = get_eva_state_dict(get_peft_model(made(), config), batches())
    assert {f"base_model.model.{name}" for name in bare} == adapted.keys()
    for name, components in bare.items():
        assert torch.equal(components, adapted[f"base_model.model.{name}"])


def test_a_layer_that_gets_no_rank_is_the_base_s_own_again_and_peft_loads_what_is_left(tmp_path: Path):
    model = get_peft_model(made(), LoraConfig(**eva(r=1, eva_config={"rho": 4.0})))
    before = len(model.targeted_module_names)
    state = get_eva_state_dict(model, batches())
    dropped = {name.removeprefix("base_model.model.") for name, A in state.items() if not len(A)}
    assert dropped
    initialize_lora_eva_weights(model, eva_state_dict=state)
    base = model.get_base_model()
    assert not any(isinstance(base.get_submodule(name), AdapterLayer) for name in dropped)
    assert len(model.targeted_module_names) == before - len(dropped)
    # The ranks are shared out, and no more of them than there were.
    ranks = [layer.r["default"] for layer in model.modules() if isinstance(layer, AdapterLayer)]
    assert sum(ranks) == before
    shaken(model).save_pretrained(tmp_path)
    arguments = {"input_ids": batches()[0]["input_ids"]}
    wanted = outputs(model, arguments)
    for load in (PeftModel.from_pretrained, peft.PeftModel.from_pretrained):
        torch.testing.assert_close(outputs(load(made(), tmp_path), arguments), wanted, rtol=0, atol=2e-6)


def test_an_adapter_without_memory_starts_as_one_with():
    fields = eva(use_dora=True)
    slim = get_peft_model(made(), LoraConfig(**fields), low_cpu_mem_usage=True)
    usual = get_peft_model(made(), LoraConfig(**fields))
    for model in (slim, usual):
        initialize_lora_eva_weights(model.eval(), batches())
        assert not [name for name, module in model.named_modules() if module.training]
    same(slim, usual)


def test_a_half_precision_adapter_keeps_its_type():
    model = get_peft_model(made().to(torch.bfloat16), LoraConfig(**eva()), autocast_adapter_dtype=False)
    initialize_lora_eva_weights(model, batches())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_of_another_adapter_nothing_changes():
    fields = eva(r=1, eva_config={"rho": 4.0})
    model = get_peft_model(made(), LoraConfig(**fields))
    model.add_adapter("other", LoraConfig(r=3, target_modules=LINEAR, init_lora_weights=False))
    other = {name: p.clone() for name, p in model.named_parameters() if ".other." in name}
    initialize_lora_eva_weights(model, batches())
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in other.items())
    # A layer on which only the other one is left stays.
    assert len([layer for layer in model.modules() if isinstance(layer, AdapterLayer)]) == 14


def test_whitened_components_are_the_others_by_the_roots_of_their_values():
    """PEFT divides those that layers share once for every layer."""
    plain = get_eva_state_dict(made(), batches(), LoraConfig(**eva(eva_config={"rho": 1.0})))
    white = get_eva_state_dict(made(), batches(), LoraConfig(**eva(eva_config={"rho": 1.0, "whiten": True})))
    for name, components in plain.items():
        torch.testing.assert_close(nn.functional.normalize(white[name]), components)
    for part in ("k_proj", "v_proj"):
        assert torch.equal(
            white["model.layers.0.self_attn.q_proj"], white[f"model.layers.0.self_attn.{part}"]
        )


def test_batches_with_fewer_tokens_than_components_wait_for_one_another():
    """PEFT passes them over, for ever."""
    short = [
        {name: part[row : row + 1, 2:5] for name, part in batch.items()}
        for batch in batches(8)
        for row in range(4)
    ]
    config = LoraConfig(**eva(r=4, target_modules=["q_proj", "o_proj"]))
    state = get_eva_state_dict(made(), short, config)
    assert sum(map(len, state.values())) == 16
    for components in state.values():
        eye = torch.eye(len(components), dtype=components.dtype)
        torch.testing.assert_close(components @ components.T, eye)


def test_a_layer_has_no_more_components_than_inputs():
    config = LoraConfig(**eva(r=12, target_modules=["q_proj"]))
    ranks = [len(A) for A in get_eva_state_dict(made(), batches(), config).values()]
    assert sum(ranks) == 24
    assert max(ranks) <= 16


def test_padding_is_not_looked_at():
    config = LoraConfig(**eva(eva_config={"use_label_mask": False}, target_modules=["q_proj", "down_proj"]))
    padded = [
        {name: nn.functional.pad(part, (0, 5), value=0) for name, part in batch.items()}
        for batch in batches()
    ]
    one, other = (get_eva_state_dict(made(), rows, config) for rows in (batches(), padded))
    for name, components in one.items():
        torch.testing.assert_close(components, other[name], rtol=0, atol=1e-4)


def test_components_that_never_settle_are_taken_as_they_are_with_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eva_module, "MOST_BATCHES", 3)
    config = LoraConfig(**eva(eva_config={"tau": 1.0}))
    with pytest.warns(PeftWarning, match=r"after 3 batches .* still move"):
        state = get_eva_state_dict(made(), batches(), config)
    assert sum(map(len, state.values())) == 28


def test_the_caller_says_how_the_model_is_run_and_what_of_it_counts():
    seen: list[str] = []

    def first_tokens(layer_input: Any, model_input: Any, layer_name: str) -> torch.Tensor:
        assert model_input == "a batch of 4"
        seen.append(layer_name)
        return layer_input[0][:, :3].flatten(0, 1)

    model = get_peft_model(made(), LoraConfig(**eva(target_modules=["q_proj"])))
    names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    options: dict[str, Any] = {
        "forward_fn": lambda model, pair: model(input_ids=pair[0]),
        "prepare_model_inputs_fn": lambda pair, config: f"a batch of {len(pair[0])}",
    }
    pairs = [(batch["input_ids"], "a label") for batch in batches()]
    one = get_eva_state_dict(
        model, pairs, prepare_layer_inputs_fn=dict.fromkeys(names, first_tokens), **options
    )
    assert set(seen) == set(names)
    other = get_eva_state_dict(model, pairs, prepare_layer_inputs_fn=None, **options)
    assert one.keys() == other.keys()
    assert not torch.equal(one[names[1]], other[names[1]])
    with pytest.raises(AdapterError, match="there is no layer 'mlp' to look at"):
        get_eva_state_dict(model, pairs, prepare_layer_inputs_fn={"mlp": first_tokens}, **options)


def test_processes_put_together_what_their_layers_are_given():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        config = LoraConfig(**eva())
        together = get_eva_state_dict(made(), batches(), config)
        alone = get_eva_state_dict(made(), batches(), config, gather_distributed_inputs=False)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_layers_that_eva_does_not_look_at_start_as_usual():
    model = get_peft_model(made(), LoraConfig(**eva(target_modules=["q_proj", "embed_tokens"])))
    with pytest.warns(PeftWarning, match=r"1 layers .* start as usual \(first: model.embed_tokens\)"):
        initialize_lora_eva_weights(model, batches())
    embedding = model.get_base_model().get_submodule("model.embed_tokens")
    assert embedding.r["default"] == 2
    assert embedding.lora_embedding_B["default"].abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: initialize_lora_eva_weights(made(), batches()), "needs a PeftModel"),
        (
            lambda: initialize_lora_eva_weights(
                get_peft_model(made(), LoraConfig(target_modules=LINEAR)), batches()
            ),
            "init_lora_weights='eva'",
        ),
        (lambda: initialize_lora_eva_weights(get_peft_model(made(), LoraConfig(**eva()))), "a dataloader"),
        (
            lambda: initialize_lora_eva_weights(
                get_peft_model(made(), LoraConfig(**eva())), eva_state_dict={"mlp": torch.ones(1, 1)}
            ),
            "is not on mlp",
        ),
        (lambda: get_eva_state_dict(made(), batches()), "peft_config is needed"),
        (lambda: get_eva_state_dict(made(), [], LoraConfig(**eva())), "there is no batch"),
        (
            lambda: get_eva_state_dict(made(), batches(), LoraConfig(**eva(target_modules=["embed_tokens"]))),
            "no linear layer",
        ),
    ],
)
def test_what_eva_cannot_do_is_said(call: Callable[[], object], message: str):
    with pytest.raises(AdapterError, match=message):
        call()


def test_broken_inputs_are_said_with_the_layer():
    base = made()
    with torch.no_grad():
        base.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(AdapterError, match=r"layers.0.self_attn.q_proj: .* not finite"):
        get_eva_state_dict(base, batches(), LoraConfig(**eva()))
    assert not any(module._forward_pre_hooks for module in base.modules())


# Which positions count.


def test_masks_are_found_by_the_shape_of_what_a_layer_is_given():
    encoder, labels = torch.tensor([[1, 1, 0]]), torch.tensor([[5, -100]])
    masks = token_masks({"attention_mask": encoder, "labels": labels, "texts": ["a"]}, -100)
    numbers = torch.arange(6.0).view(1, 3, 2)
    assert torch.equal(kept(numbers, masks), numbers[0, :2])
    assert torch.equal(kept(numbers[:, :2], masks), numbers[0, :1])
    assert torch.equal(kept(numbers[0], masks), numbers[0])
    assert torch.equal(kept(numbers[:, :1], masks), numbers[0, :1])
    assert [row.tolist() for row in by_row(numbers, token_masks({"attention_mask": encoder}))] == [
        numbers[0, :2].tolist()
    ]


# LoRA-GA.


def loraga(direction: str = "ArB2r", scale: str = "stable", **settings) -> dict[str, Any]:
    return {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ATTENTION,
        "init_lora_weights": "lora_ga",
        "lora_ga_config": {"direction": direction, "scale": scale, "stable_gamma": 4},
    } | settings


def backward(model: nn.Module) -> Callable[[], None]:
    def train_step() -> None:
        for batch in batches():
            model(**batch).loss.backward()

    return train_step


def loraga_model(fields: dict[str, Any], build: Callable[[], nn.Module] = llama) -> PeftModel:
    base, config = made(build), LoraConfig(**fields)
    preprocess_loraga(base, config, backward(base))
    return get_peft_model(base, config)


# PEFT counts backward passes by a hook of which PyTorch says so.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("scale", ["stable", "gd_scale", "unit"])
@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r"])
def test_lora_ga_starts_with_the_singular_vectors_that_peft_takes(direction: str, scale: str):
    fields = loraga(direction, scale, use_rslora=scale == "unit")
    ours = loraga_model(fields)
    base = made(llama)
    config = peft.LoraConfig(**fields | {"lora_ga_config": peft.LoraGAConfig(**fields["lora_ga_config"])})
    peft.preprocess_loraga(base, config, backward(base))
    theirs = dict(peft.get_peft_model(base, config).named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.shape == theirs[name].shape
        if "lora_" in name:  # both signs of a pair of singular vectors are right
            torch.testing.assert_close(parameter.abs(), theirs[name].abs(), rtol=1e-3, atol=1e-5)


def test_weight_svd_scales_b_to_the_weight_s_largest_singular_value():
    model = loraga_model(
        loraga(scale="weight_svd", r=4, target_modules=["o_proj"]), lambda: llama(hidden_size=8)
    )
    layer = model.get_base_model().model.layers[0].self_attn.o_proj
    weight = made(llama).model.layers[0].self_attn.o_proj.weight
    largest = torch.linalg.matrix_norm(layer.lora_B["default"].weight, 2)
    torch.testing.assert_close(largest, torch.linalg.matrix_norm(weight, 2), rtol=1e-3, atol=0)


def test_random_singular_vectors_are_those_of_the_seed():
    models = []
    for seed in (3, 3, 4):
        base, config = made(llama), LoraConfig(**loraga("random"))
        torch.manual_seed(seed)
        preprocess_loraga(base, config, backward(base))
        models.append(get_peft_model(base, config).state_dict())
    keys = [key for key in models[0] if "lora_" in key]
    assert all(torch.equal(models[0][key], models[1][key]) for key in keys)
    assert not all(torch.equal(models[0][key], models[2][key]) for key in keys)


def test_estimating_gradients_leaves_the_model_as_it_was():
    base = made(llama).eval()
    base.lm_head.weight.requires_grad_(False)
    before = copy.deepcopy(base)
    preprocess_loraga(base, LoraConfig(**loraga()), backward(base))
    same(base, before)
    assert all(p.grad is None for p in base.parameters())
    assert not base.training


@pytest.mark.parametrize("name", ["lora_ga", "corda"])
def test_kept_files_spare_the_rows(name: str, tmp_path: Path):
    file = tmp_path / "new" / "kept.pt"
    states = []
    for first in (True, False):
        base = made(llama)
        if name == "lora_ga":
            config = LoraConfig(**loraga(target_modules=["q_proj"]))
            torch.manual_seed(0)
            preprocess_loraga(base, config, backward(base) if first else lambda: None, file)
        else:
            config = LoraConfig(**corda(corda_config={"cache_file": str(file), "verbose": first}))
            preprocess_corda(base, config, forward(base) if first else None)
        states.append(get_peft_model(base, config).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(AdapterError, match=r"kept.pt: cannot be read: .*; delete it"):
        preprocess_loraga(base, LoraConfig(**loraga()), lambda: None, file)


# CorDA.


def corda(**settings) -> dict[str, Any]:
    return {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": LINEAR,
        "init_lora_weights": "corda",
        "corda_config": {},
    } | settings


def forward(model: nn.Module, *, together: bool = False) -> Callable[[], None]:
    def run_model() -> None:
        for batch in batches():
            for ids in batch["input_ids"].split(4 if together else 1):
                model(ids)

    return run_model


@pytest.mark.parametrize("method", ["ipm", "kpm"])
@pytest.mark.parametrize("settings", [{}, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"o_proj": 9}}])
def test_corda_starts_with_the_directions_that_peft_takes(method: str, settings: dict[str, Any]):
    fields = corda(**settings)
    base, theirs = made(), made()
    config = LoraConfig(**fields | {"corda_config": CordaConfig(corda_method=method)})
    their_config = peft.LoraConfig(**fields | {"corda_config": TheirCordaConfig(corda_method=method)})
    preprocess_corda(base, config, forward(base))
    their_preprocess_corda(theirs, their_config, forward(theirs))
    # The directions that rows use least are next to nothing.
    same(get_peft_model(base, config), peft.get_peft_model(theirs, their_config), 1e-5)


def test_corda_on_gpt2_s_conv1d_is_peft_s():
    fields = corda(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    base, theirs = made(gpt2), made(gpt2)
    config = LoraConfig(**fields | {"corda_config": CordaConfig()})
    their_config = peft.LoraConfig(**fields | {"corda_config": TheirCordaConfig()})
    preprocess_corda(base, config, forward(base))
    their_preprocess_corda(theirs, their_config, forward(theirs))
    same(get_peft_model(base, config), peft.get_peft_model(theirs, their_config), 1e-6)


def test_rows_together_are_the_rows_one_by_one():
    states = []
    for together in (False, True):
        base, config = made(), LoraConfig(**corda())
        preprocess_corda(base, config, forward(base, together=together))
        states.append(get_peft_model(base, config).state_dict())
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=0, atol=1e-4)


def test_another_model_may_run_over_the_rows_and_covariances_serve_several_ranks(tmp_path: Path):
    file = str(tmp_path / "covariances.pt")
    base, runner = made(), made()
    config = LoraConfig(**corda(corda_config={"covariance_file": file}))
    preprocess_corda(base, config, forward(runner), runner)
    usual, usual_config = made(), LoraConfig(**corda())
    preprocess_corda(usual, usual_config, forward(usual))
    same(get_peft_model(base, config), get_peft_model(usual, usual_config))
    larger, larger_config = made(), LoraConfig(**corda(r=3, corda_config={"covariance_file": file}))
    preprocess_corda(larger, larger_config)
    assert get_peft_model(larger, larger_config).peft_config["default"].r == 3


def test_half_precision_covariances_are_near_the_others():
    states = []
    for half in (False, True):
        base = made().to(torch.bfloat16)
        config = LoraConfig(**corda(corda_config={"use_float16_for_covariance": half}))
        preprocess_corda(base, config, forward(base))
        model = get_peft_model(base, config)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        states.append(model)
    assert {p.dtype for n, p in states[1].named_parameters() if "lora_" in n} == {torch.float32}


# What both have in common.


def started(name: str) -> PeftModel:
    if name == "lora_ga":
        return loraga_model(loraga())
    base, config = made(llama), LoraConfig(**corda(target_modules=ATTENTION))
    preprocess_corda(base, config, forward(base))
    return get_peft_model(base, config)


both = pytest.mark.parametrize("name", ["lora_ga", "corda"])


@both
def test_a_fresh_adapter_with_the_rest_of_the_base_is_the_base(name: str):
    model, base = started(name), made(llama)
    arguments = {"input_ids": batches()[0]["input_ids"]}
    torch.testing.assert_close(outputs(model, arguments), outputs(base, arguments), rtol=0, atol=1e-6)
    with model.disable_adapter():
        assert not torch.allclose(outputs(model, arguments), outputs(base, arguments), atol=1e-4)
    assert not any("lora_start" in vars(module) for module in model.modules())


@both
def test_the_difference_to_the_start_is_a_plain_adapter_for_the_published_base(name: str, tmp_path: Path):
    model = started(name)
    model.save_pretrained(tmp_path / "start")
    shaken(model).save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    arguments = {"input_ids": batches()[0]["input_ids"]}
    wanted = outputs(model, arguments)
    for load in (PeftModel.from_pretrained, peft.PeftModel.from_pretrained):
        plain = load(made(llama), tmp_path / "plain")
        torch.testing.assert_close(outputs(plain, arguments), wanted, rtol=0, atol=1e-5)
    config = PeftModel.from_pretrained(made(llama), tmp_path / "plain").peft_config["default"]
    assert (config.init_lora_weights, config.r) == (True, 4)
    assert config.lora_ga_config is config.corda_config is None


@both
def test_loaded_as_it_is_the_adapter_leaves_the_base_as_it_is_and_says_whose_it_is(name: str, tmp_path: Path):
    model = shaken(started(name))
    model.save_pretrained(tmp_path)
    changed = model.unload()
    with pytest.warns(PeftWarning, match="is for the base as it was changed for it"):
        loaded = PeftModel.from_pretrained(changed, tmp_path)
    again = shaken(started(name))
    arguments = {"input_ids": batches()[0]["input_ids"]}
    torch.testing.assert_close(outputs(loaded, arguments), outputs(again, arguments), rtol=0, atol=1e-6)


@both
def test_without_having_looked_at_rows_there_is_no_such_adapter(name: str):
    """PEFT starts LoRA-GA's plainly, and says nothing."""
    fields = loraga() if name == "lora_ga" else corda()
    function = {"lora_ga": "preprocess_loraga", "corda": "preprocess_corda"}[name]
    with pytest.raises(AdapterError, match=f"call {function}"):
        get_peft_model(made(llama), LoraConfig(**fields))


@both
def test_what_was_found_is_for_the_rank_that_it_was_found_for(name: str):
    base = made(llama)
    if name == "lora_ga":
        preprocess_loraga(base, LoraConfig(**loraga()), backward(base))
        config = LoraConfig(**loraga(r=3))
    else:
        preprocess_corda(base, LoraConfig(**corda()), forward(base))
        config = LoraConfig(**corda(r=3))
    with pytest.raises(AdapterError, match="found for rank 2, and here its rank is 3"):
        get_peft_model(base, config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda base: preprocess_loraga(base, LoraConfig(target_modules=ATTENTION), backward(base)),
            "init_lora_weights='lora_ga'",
        ),
        (
            lambda base: preprocess_loraga(base, LoraConfig(**loraga(r=3)), backward(base)),
            r"takes 2 r = 6 singular vectors, and the layer has 4",
        ),
        (
            lambda base: preprocess_loraga(
                base, LoraConfig(**loraga(target_modules=["embed_tokens"])), backward(base)
            ),
            "no linear layer",
        ),
        (
            lambda base: preprocess_corda(base, LoraConfig(target_modules=ATTENTION), forward(base)),
            "init_lora_weights='corda'",
        ),
        (lambda base: preprocess_corda(base, LoraConfig(**corda())), "run_model is needed"),
        (
            lambda base: preprocess_corda(
                base, LoraConfig(**corda(r=5, target_modules=["v_proj"])), forward(base)
            ),
            "takes 5 singular vectors, and the layer has 4",
        ),
        (
            lambda base: preprocess_corda(
                base, LoraConfig(**corda(target_modules=["embed_tokens"])), forward(base)
            ),
            "no linear layer",
        ),
    ],
)
def test_what_cannot_be_prepared_is_said(call: Callable[[nn.Module], object], message: str):
    with pytest.raises(AdapterError, match=message):
        call(made(llama))


def test_an_encoder_s_layers_are_looked_at_too():
    base = made(bert)
    rows = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches()]
    config = LoraConfig(**eva(target_modules=["query", "value"], task_type="SEQ_CLS"))
    model = get_peft_model(base, config)
    initialize_lora_eva_weights(model, rows)
    assert sum(layer.r["default"] for layer in model.modules() if isinstance(layer, AdapterLayer)) == 8


# Settings.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eva_config": {"rh": 2}}, r"eva_config.rh: is not a field of EvaConfig; did you mean 'rho'\?"),
        ({"eva_config": {"rho": 0.5}}, "eva_config.rho: must be at least 1"),
        ({"eva_config": {"tau": 2}}, "eva_config.tau: must be from 0 to 1"),
        ({"eva_config": 2}, "eva_config: must be a mapping with the fields of EvaConfig, not 2"),
        ({"lora_ga_config": {"direction": "AB"}}, "lora_ga_config.direction: 'AB' is not one of: ArBr"),
        ({"corda_config": {"corda_method": "kpi"}}, "corda_config.corda_method: 'kpi' is not one of"),
        ({"corda_config": {"prune_temporary_fields": False}}, "prune_temporary_fields: has to stay true"),
        ({"loftq_config": {"loftq_bits": 2}}, r"loftq_bits: must be 4 \(nf4\) or 8 \(int8\), not 2"),
        ({"loftq_config": {"loftq_iter": 0}}, "loftq_iter: must be at least 1"),
    ],
)
def test_settings_are_checked_with_the_config(fields: dict[str, Any], message: str):
    start = next(iter(fields)).removesuffix("_config")
    with pytest.raises(AdapterConfigError, match=message):
        LoraConfig(init_lora_weights=start, **fields)


def test_settings_that_do_nothing_are_said():
    with pytest.warns(UserWarning, match="eva_config does nothing without init_lora_weights: eva"):
        LoraConfig(eva_config=EvaConfig())


def test_settings_made_by_themselves_are_checked():
    with pytest.raises(AdapterConfigError, match="scale: 'stabel' is not one of"):
        LoraGAConfig(scale="stabel")


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 3.0, "whiten": True}},
        {"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "unit"}},
        {"init_lora_weights": "corda", "corda_config": {"corda_method": "kpm"}},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8, "loftq_iter": 2}},
    ],
)
def test_settings_are_written_as_peft_writes_them_and_read_again(fields: dict[str, Any], tmp_path: Path):
    config = LoraConfig(**fields)
    config.save_pretrained(tmp_path)
    assert LoraConfig.from_pretrained(tmp_path) == config
    theirs = peft.LoraConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    assert LoraConfig.from_pretrained(tmp_path / "theirs").to_dict() == config.to_dict() | {
        "peft_version": theirs.peft_version
    }
