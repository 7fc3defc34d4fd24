"""LoRA on parameters: on the experts of mixtures of experts it gives what PEFT gives, without their sums."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from peftcli.adapters.config import PeftConfig
from peftcli.errors import AdapterConfigError, AdapterError, NoMatchingPeftModuleError
from peftcli.kernels.updated_weight import UpdatedWeight
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.hotswap import prepare_model_for_compiled_hotswap
from peftcli.methods.lora.parameters import ParamWrapper
from peftcli.peft.base_state import get_base_model_state_dict
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.optimizers import create_lorafa_optimizer
from peftcli.peft.storage import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from tests.methods.cases import shake
from tests.methods.models import MOE, SIZES, Stacks, gpt_oss, llama, qwen_moe, stacks

TOKENS = torch.arange(14).reshape(2, 7) % 11
EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]
FIELDS: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": [], "target_parameters": EXPERTS}


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, **MOE, num_local_experts=4))


def olmoe() -> nn.Module:
    sizes = {name: value for name, value in MOE.items() if name != "head_dim"}
    return OlmoeForCausalLM(OlmoeConfig(**SIZES, **sizes, num_experts=4, num_experts_per_tok=2))


def llama4() -> nn.Module:
    """Its experts say of no axis which it is."""
    layers = {"interleave_moe_layer_step": 1, "moe_layers": [0, 1], "intermediate_size_mlp": 16}
    return Llama4ForCausalLM(Llama4TextConfig(**SIZES, **MOE, **layers, num_local_experts=4))


ARCHITECTURES = [qwen_moe, gpt_oss, mixtral, olmoe, llama4]
WAYS = ["eager", "batched_mm", "grouped_mm"]
# Llama 4 multiplies all experts by what is sorted for them, and has no other way.
EVERY_WAY = [(build, way) for build in ARCHITECTURES for way in WAYS if build is not llama4 or way == "eager"]
every_way = pytest.mark.parametrize(("build", "way"), EVERY_WAY)
both_ways_round = pytest.mark.parametrize("build", [qwen_moe, gpt_oss])


def base(build: Callable[[], nn.Module], way: str = "eager") -> Any:
    torch.manual_seed(7)
    model: Any = build().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "experts" in name:
            nn.init.normal_(parameter, std=0.3)
    if build in ARCHITECTURES and build is not llama4:
        model.set_experts_implementation(way)
    return model


def adapted(build: Callable[[], nn.Module], way: str = "eager", **fields: Any) -> PeftModel:
    model = get_peft_model(base(build, way), LoraConfig(**FIELDS | fields))
    shake(model)
    return model


def both(build: Callable[[], nn.Module], way: str = "eager", **fields: Any) -> tuple[PeftModel, Any]:
    """Ours and PEFT's, with the same weights."""
    ours = adapted(build, way, **fields)
    theirs: Any = peft.get_peft_model(base(build, way), peft.LoraConfig(**FIELDS | fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def wrappers(model: nn.Module) -> list[ParamWrapper]:
    return [module for module in model.modules() if isinstance(module, ParamWrapper)]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(TOKENS).logits.pow(2).sum().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@every_way
def test_outputs_and_gradients_are_peft_s_in_every_way_that_transformers_computes_experts(
    build: Callable[[], nn.Module], way: str
):
    ours, theirs = both(build, way)
    plain = base(build, way)(TOKENS).logits
    assert not torch.allclose(ours(TOKENS).logits, plain, atol=1e-3)
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    one, other = gradients(ours), gradients(theirs)
    assert one.keys() == other.keys()
    assert len(one) == 8
    for name in one:
        scale = float(other[name].abs().max())
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5 * scale)


@every_way
def test_no_sum_of_weight_and_update_is_made(
    build: Callable[[], nn.Module], way: str, monkeypatch: pytest.MonkeyPatch
):
    def made(self: UpdatedWeight) -> torch.Tensor:
        raise AssertionError("the sum was made")

    monkeypatch.setattr(UpdatedWeight, "made", made)
    model = adapted(build, way)
    assert len(wrappers(model)) == 4
    gradients(model)


@both_ways_round
@pytest.mark.parametrize("way", WAYS)
def test_several_active_adapters_add_up(build: Callable[[], nn.Module], way: str):
    ours, theirs = both(build, way)
    more = {"r": 3, "lora_alpha": 1, "init_lora_weights": False}
    ours.add_adapter("other", LoraConfig(**FIELDS | more))
    theirs.add_adapter("other", peft.LoraConfig(**FIELDS | more))
    for model in (ours, theirs):
        model.base_model.set_adapter(["default", "other"])
        shake(model, seed=5)
    theirs.load_state_dict(ours.state_dict())
    together = ours(TOKENS).logits
    torch.testing.assert_close(together, theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    ours.merge_adapter()
    torch.testing.assert_close(ours(TOKENS).logits, together, rtol=1e-5, atol=1e-5)
    ours.unmerge_adapter()
    ours.set_adapter("default")
    alone = ours(TOKENS).logits
    ours.set_adapter(["default", "other"])
    ours.merge_adapter(["default"])
    torch.testing.assert_close(ours(TOKENS).logits, alone, rtol=1e-5, atol=1e-5)


def test_adapters_on_other_parameters_of_a_module_are_each_saved_as_if_they_were_alone(tmp_path: Path):
    """PEFT takes one set of parameters a model; its files are the same whichever others there are."""
    model = adapted(qwen_moe, target_parameters=["experts.down_proj"])
    expected = {}
    for name, parameters in (("up", ["experts.gate_up_proj"]), ("both", EXPERTS)):
        model.add_adapter(name, LoraConfig(**FIELDS | {"target_parameters": parameters}))
    for name in model.peft_config:
        model.set_adapter(name)
        shake(model)
        expected[name] = model(TOKENS).logits
    model.save_pretrained(tmp_path)
    for name, logits in expected.items():
        folder = tmp_path if name == "default" else tmp_path / name
        for library in (peft.PeftModel, PeftModel):
            alone = library.from_pretrained(base(qwen_moe), folder)
            torch.testing.assert_close(alone(TOKENS).logits, logits, rtol=1e-5, atol=1e-5)
    model.delete_adapter("default")
    model.set_adapter("both")
    assert torch.equal(model(TOKENS).logits, expected["both"])
    kept = load_peft_weights(tmp_path / "both")
    assert kept.keys() == get_peft_model_state_dict(model, adapter_name="both").keys()


@both_ways_round
def test_the_status_is_peft_s(build: Callable[[], nn.Module]):
    ours, theirs = both(build, target_modules=["q_proj"])
    for one, other in zip(ours.get_layer_status(), theirs.get_layer_status(), strict=True):
        assert vars(one) == vars(other)
    assert [status.name for status in ours.get_layer_status()][:3] == [
        "model.model.layers.0.self_attn.q_proj",
        "model.model.layers.0.mlp.experts",
        "model.model.layers.0.mlp.experts.base_layer",
    ]
    mine, their = ours.base_model, theirs.base_model
    assert sorted(mine.targeted_parameter_names) == sorted(their.targeted_parameter_names)
    assert mine.targeted_module_names == their.targeted_module_names


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@both_ways_round
def test_ranks_and_alphas_by_pattern_are_peft_s(build: Callable[[], nn.Module], tmp_path: Path):
    patterns = {
        "rank_pattern": {"experts.down_proj": 3, "gate_up_proj": 1},
        "alpha_pattern": {r".*\.1\..*gate_up_proj": 5, "down_proj": 2},
    }
    ours, theirs = both(build, **patterns)
    torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    ours.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(build), tmp_path)
    torch.testing.assert_close(ours(TOKENS).logits, loaded(TOKENS).logits, rtol=1e-5, atol=1e-5)


@both_ways_round
def test_an_adapter_is_loaded_without_memory_of_its_own_first(build: Callable[[], nn.Module], tmp_path: Path):
    ours = adapted(build)
    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(build), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(loaded(TOKENS).logits, ours(TOKENS).logits)
    loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=True)
    loaded.set_adapter("again")
    assert torch.equal(loaded(TOKENS).logits, ours(TOKENS).logits)
    fresh = get_peft_model(base(build), LoraConfig(**FIELDS), low_cpu_mem_usage=True)
    assert {each.device.type for name, each in fresh.named_parameters() if "lora_" in name} == {"meta"}
    with torch.device("meta"):
        everything = get_peft_model(build(), LoraConfig(**FIELDS))
    assert {each.device.type for each in everything.parameters()} == {"meta"}


def test_it_can_be_injected_into_a_model_that_stays_what_it_is():
    model = base(qwen_moe)
    injected = inject_adapter_in_model(LoraConfig(**FIELDS), model)
    assert injected is model
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(**FIELDS), base(qwen_moe))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    state = {key: torch.ones_like(tensor) for key, tensor in get_peft_model_state_dict(model).items()}
    assert state.keys() == peft.get_peft_model_state_dict(theirs).keys()
    set_peft_model_state_dict(model, state)
    peft.set_peft_model_state_dict(theirs, state)
    torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(AdapterError, match="keys do not say which parameter they are for"):
        inject_adapter_in_model(LoraConfig(**FIELDS), base(qwen_moe), state_dict=state)


@pytest.mark.slow
@both_ways_round
def test_compiled_into_one_graph_it_gives_the_same(build: Callable[[], nn.Module]):
    torch._dynamo.reset()
    model = adapted(build, "grouped_mm")
    expected = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS).logits, model(TOKENS).logits, rtol=1e-5, atol=1e-5)
    model.zero_grad()
    compiled(TOKENS).logits.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = adapted(qwen_moe, "grouped_mm")
    expected = gradients(model)
    model.get_base_model().activation_checkpointing_enable()
    model.get_base_model().enable_input_require_grads()
    model.train()
    checkpointed = gradients(model)
    assert checkpointed.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(checkpointed[name], expected[name])


def test_a_half_precision_base_is_updated_in_its_own_type_and_trained_in_float32():
    model = get_peft_model(base(qwen_moe, "grouped_mm").bfloat16(), LoraConfig(**FIELDS))
    shake(model)
    assert {each.dtype for each in gradients(model).values()} == {torch.float32}
    exact = adapted(qwen_moe)
    exact.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(TOKENS).logits.float(), exact(TOKENS).logits, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = adapted(qwen_moe)(TOKENS).logits
    torch.testing.assert_close(mixed.float(), adapted(qwen_moe)(TOKENS).logits, rtol=0.1, atol=0.1)


def test_experts_that_are_computed_by_other_than_pytorch_s_functions_get_an_ordinary_tensor(
    monkeypatch: pytest.MonkeyPatch,
):
    seen = []

    def own(self: nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
        seen.append(type(self.gate_up_proj))
        return ALL_EXPERTS_FUNCTIONS["batched_mm"](self, *arguments)

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "own", own)
    model = adapted(qwen_moe, "own")
    torch.testing.assert_close(model(TOKENS).logits, adapted(qwen_moe)(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert set(seen) == {torch.Tensor}


class One(nn.Module):
    """A single expert, whose matrix is (inputs, outputs)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.is_transposed = True
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor([len(x)], dtype=torch.int32)
        return nn.functional.grouped_mm(x, self.weight, offs=ends)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_single_expert_the_other_way_round_is_merged_as_it_computes(rank: int):
    """PEFT adds the update of a lone expert without turning it."""
    config = LoraConfig(r=rank, target_modules=[], target_parameters=["0.weight"])
    model = get_peft_model(nn.Sequential(One((1, 8, 4))), config)
    shake(model)
    x = torch.randn(3, 8)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


def test_everything_of_the_base_is_found_past_the_adapters():
    model = adapted(stacks, target_modules=["inner"], target_parameters=["matrix", "stack"])
    plain = base(stacks)
    assert get_base_model_state_dict(model).keys() == plain.state_dict().keys()
    names = [name for name, _ in model.named_parameters() if "plain" in name and "lora_A" in name]
    assert names == [
        "base_model.model.plain.base_layer.base_layer.inner.lora_A.default.weight",
        "base_model.model.plain.base_layer.lora_A.default.weight",
        "base_model.model.plain.lora_A.default.weight",
    ]
    assert model.unload().state_dict().keys() == plain.state_dict().keys()


def test_a_copy_of_the_model_is_one_of_its_own():
    model = adapted(qwen_moe)
    other = copy.deepcopy(model)
    shake(other, seed=9)
    assert not torch.equal(other(TOKENS).logits, model(TOKENS).logits)


def test_without_target_modules_only_an_architecture_s_own_defaults_join_the_parameters():
    for build in ARCHITECTURES:
        ours = get_peft_model(base(build), LoraConfig(**FIELDS | {"target_modules": None}))
        theirs = peft.get_peft_model(base(build), peft.LoraConfig(**FIELDS | {"target_modules": None}))
        assert [name for name, _ in ours.named_parameters()] == [
            name for name, _ in theirs.named_parameters()
        ]
    parameters = ["gate_proj.weight"]
    ours = get_peft_model(base(llama), LoraConfig(target_parameters=parameters))
    theirs = peft.get_peft_model(base(llama), peft.LoraConfig(target_parameters=parameters))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert ours.peft_config["default"].target_modules == ["q_proj", "v_proj"]


def test_peft_s_files_for_mixtures_of_experts_are_read_where_no_parameter_is_adapted(tmp_path: Path):
    """It writes `target_parameters: []` there."""
    theirs = peft.get_peft_model(base(qwen_moe), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    config: Any = PeftConfig.from_pretrained(tmp_path)
    assert config.target_parameters == []
    loaded = PeftModel.from_pretrained(base(qwen_moe), tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


REFUSED_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"lora_dropout": 0.1}, "lora_dropout: does not go together with target_parameters"),
    "dora": ({"use_dora": True}, "use_dora: does not go together with target_parameters"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out: does not go together"),
    "text": ({"target_parameters": "down_proj"}, "must be a list of parameter names"),
    "numbers": ({"target_parameters": [3]}, "must hold parameter names only"),
    "nothing": ({"target_parameters": None}, "target_modules: is an empty list"),
}


@pytest.mark.parametrize("case", REFUSED_FIELDS)
def test_what_parameters_cannot_have_is_refused_with_the_config(case: str):
    fields, message = REFUSED_FIELDS[case]
    with pytest.raises(AdapterConfigError, match=message):
        LoraConfig(**FIELDS | fields)


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "a name that is nearly one": (
        qwen_moe,
        {"target_parameters": ["experts.gate_up"]},
        r"'experts.gate_up' matches no parameter; the nearest: experts.gate_up_proj",
    ),
    "a module": (qwen_moe, {"target_parameters": ["q_proj"]}, "'q_proj' is a module; name it in target_mod"),
    "a parameter among modules": (
        qwen_moe,
        {"target_modules": ["down_proj"]},
        "'down_proj' is a parameter; name it in target_parameters",
    ),
    "a vector": (
        gpt_oss,
        {"target_parameters": ["router.bias"]},
        r"router.bias has 1 dimensions; .*\(and 1 more modules\)",
    ),
    "the module itself": (
        llama,
        {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]},
        "q_proj.weight is in what target_modules or modules_to_save names",
    ),
    "what is trained whole": (
        llama,
        {"target_parameters": ["lm_head.weight"], "modules_to_save": ["lm_head"]},
        "lm_head.weight is in what target_modules or modules_to_save names",
    ),
    "an initialisation that reads the base": (
        qwen_moe,
        {"init_lora_weights": "pissa"},
        "gate_up_proj: init_lora_weights 'pissa' is for linear layers only",
    ),
    "an initialisation of one matrix": (
        qwen_moe,
        {"init_lora_weights": "orthogonal"},
        "init_lora_weights 'orthogonal' is for linear layers only",
    ),
    "modules to leave out": (
        qwen_moe,
        {"exclude_modules": ["q_proj"]},
        "exclude_modules: has no effect, since target_modules names no module",
    ),
    "numbers of layers": (qwen_moe, {"layers_to_transform": [0]}, "layers_to_transform: has no effect"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_parameter_to_adapt_is_refused_with_a_hint(case: str):
    build, fields, message = REFUSED[case]
    model = base(build)
    before = list(model.state_dict())
    with pytest.raises(AdapterError, match=message):
        get_peft_model(model, LoraConfig(**FIELDS | fields))
    assert list(model.state_dict()) == before


def test_a_parameter_of_the_model_itself_is_refused():
    class Own(Stacks):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.randn(2, 2))

    with pytest.raises(AdapterError, match="'extra' is a parameter of the model itself"):
        get_peft_model(Own(), LoraConfig(target_parameters=["extra"]))


@pytest.mark.filterwarnings("ignore:target_parameters. 'absent' matches no parameter")
def test_an_adapter_from_elsewhere_may_name_parameters_that_this_model_does_not_have(tmp_path: Path):
    model = adapted(qwen_moe)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"experts.down_proj",', '"experts.down_proj", "absent",'))
    loaded = PeftModel.from_pretrained(base(qwen_moe), tmp_path)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    path.write_text(path.read_text().replace('"experts.', '"missing.'))
    with pytest.warns(UserWarning, match="matches no"), pytest.raises(NoMatchingPeftModuleError):
        PeftModel.from_pretrained(base(qwen_moe), tmp_path)


def test_a_module_and_its_parameters_cannot_both_have_adapters():
    whole = get_peft_model(base(llama), LoraConfig(target_modules=["q_proj"]))
    parts = LoraConfig(target_modules=[], target_parameters=["q_proj.weight"])
    with pytest.raises(AdapterError, match=r"q_proj.weight: the module has adapters as a whole"):
        whole.add_adapter("other", parts)
    apart = get_peft_model(base(llama), parts)
    with pytest.raises(AdapterError, match="q_proj has adapters on its parameters"):
        apart.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    apart.add_adapter("other", LoraConfig(target_modules="all-linear"))
    assert "q_proj" not in apart.peft_config["other"].target_modules


def test_what_peft_cannot_do_with_parameters_is_refused(tmp_path: Path):
    model = adapted(qwen_moe)
    model.add_adapter("other", LoraConfig(**FIELDS))
    with pytest.raises(AdapterError, match=r"adapters on parameters .* cannot be combined"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum", combination_type="linear")
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"adapters on parameters .* cannot be swapped"):
        model.base_model.method_of("default").swap(
            model.base_model, "default", {}, model.peft_config["default"]
        )
    with pytest.raises(AdapterError, match=r"adapters on parameters .* cannot be swapped"):
        prepare_model_for_compiled_hotswap(model)
    with pytest.raises(AdapterError, match=r"adapter on parameters .* cannot be converted"):
        model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion=tmp_path)
    with pytest.raises(AdapterError, match="a ParamWrapper layer of this method mixes no batches"):
        model(TOKENS, adapter_names=["default", "other"])
    with pytest.raises(AdapterError, match="LoRA-FA takes one pair of A and B a layer"):
        create_lorafa_optimizer(model, r=2, lora_alpha=6, lr=0.1)


def test_offloaded_and_quantized_parameters_are_refused():
    model = base(qwen_moe)
    experts = model.model.layers[0].mlp.experts
    weight = experts.down_proj
    experts.down_proj, experts._hf_hook = nn.Parameter(weight.to("meta")), object()
    with pytest.raises(AdapterError, match=r"layers.0.mlp.experts.down_proj is offloaded"):
        get_peft_model(model, LoraConfig(**FIELDS))
    experts.down_proj = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(AdapterError, match=r"down_proj is stored as torch.float8_e4m3fn"):
        get_peft_model(model, LoraConfig(**FIELDS))


@both_ways_round
def test_half_precision_experts_are_merged_with_one_rounding(build: Callable[[], nn.Module]):
    model = get_peft_model(base(build).bfloat16(), LoraConfig(**FIELDS))
    shake(model)
    wrapper = wrappers(model)[0]
    weight = getattr(wrapper.get_base_layer(), wrapper.parameter).detach().double()
    down, up = (factor.double() for factor in wrapper.factors("default"))
    expected = weight + wrapper.unmatrix(up @ down) * wrapper.scaling["default"]
    model.merge_adapter(safe_merge=True)
    assert torch.equal(getattr(wrapper.get_base_layer(), wrapper.parameter), expected.bfloat16())
    model.unmerge_adapter()
    assert torch.equal(getattr(wrapper.get_base_layer(), wrapper.parameter).double(), weight)


def test_a_broken_adapter_is_not_merged_where_that_is_checked():
    model = adapted(qwen_moe)
    with torch.no_grad():
        wrappers(model)[0].lora_B["default"].weight[0, 0] = float("inf")
    with pytest.raises(AdapterError, match="gives values that are not finite"):
        model.merge_adapter(safe_merge=True)


def test_a_printed_model_says_which_parameter_each_layer_is_for():
    assert "lora.ParamWrapper(\n  parameter=down_proj" in repr(wrappers(adapted(qwen_moe))[0])
