"""What holds for every method and config, over small models in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peftcli.adapters.base import AdapterLayer
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.peft.storage import get_peft_model_state_dict, load_peft_weights
from peftcli.registry import ENGINES, METHODS, resolve
from tests.methods.cases import CASES, Case, build, inputs, outputs, shake
from tests.methods.prompt_cases import PROMPT_CASES


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.peft_type} {case.name}")


pytestmark = [
    # Cases reach for what these say on purpose.
    pytest.mark.filterwarnings("ignore:lora_dropout does not act on embeddings"),
    pytest.mark.filterwarnings("ignore:trained biases stay in place"),
    pytest.mark.filterwarnings("ignore:the merged embeddings differ from"),
    pytest.mark.filterwarnings("ignore:oft_block_size .* does not divide"),
    pytest.mark.filterwarnings("ignore:.* cannot start in pairs"),
]
every = over(CASES)
# An adapter that changes its base, or trains biases, stands alone.
sociable = over([case for case in CASES if case.keeps_base])


def adapt(case: Case) -> PeftModel:
    torch.manual_seed(11)
    config = resolve(METHODS, case.peft_type, what="peft_type")(**case.config)
    return get_peft_model(build(case), config)


def trained(case: Case) -> PeftModel:
    model = adapt(case)
    shake(model)
    return model


def adapter_layers(model: torch.nn.Module) -> Iterator[AdapterLayer]:
    return (module for module in model.modules() if isinstance(module, AdapterLayer))


def buffers(model: torch.nn.Module) -> set[int]:
    """What some methods save but do not train: random projections, and places."""
    return {buffer.data_ptr() for buffer in model.buffers()}


def test_every_registered_method_has_cases_and_an_engine():
    # LLaMA-adapter, which cannot be merged, has its own file of tests.
    named = {case.peft_type for case in [*CASES, *PROMPT_CASES]}
    assert set(METHODS) == set(ENGINES) == named | {"ADAPTION_PROMPT"}


@every
def test_a_fresh_adapter_changes_nothing_where_its_start_promises_so(case: Case):
    base, model = build(case), adapt(case)
    difference = (outputs(base, inputs(base)) - outputs(model, inputs(base))).abs().max()
    assert (difference < 1e-12) == case.silent


@every
def test_training_moves_every_saved_weight_and_no_other(case: Case):
    model = trained(case).train()  # from a point where no factor is zero
    arguments = inputs(model.get_base_model())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    saved = {tensor.data_ptr() for tensor in state.values()} - buffers(model)
    for parameter in model.parameters():
        assert parameter.requires_grad == (parameter.data_ptr() in saved)
    torch.manual_seed(0)
    result = model(**arguments)
    result = result if isinstance(result, torch.Tensor) else result.logits
    result.pow(2).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.state_dict(keep_vars=True).items():
        moved = not torch.equal(tensor, before[name])
        idle = name.endswith("key.bias")  # softmax does not see a shift of all keys: the gradient is rounding
        assert idle or moved == (tensor.data_ptr() in saved), name


@every
def test_merging_gives_what_the_adapter_gave_and_unmerging_gives_the_base_back_exactly(case: Case):
    model = trained(case)
    arguments = inputs(model.get_base_model())
    with_adapter = outputs(model, arguments)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(outputs(model, arguments), with_adapter, rtol=1e-10, atol=1e-12)
    assert all(layer.merged for layer in adapter_layers(model))
    model.unmerge_adapter()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(outputs(model, arguments), with_adapter, rtol=0, atol=0)


@every
def test_merging_and_unloading_leaves_a_plain_model_that_gives_the_same(case: Case):
    model = trained(case)
    arguments = inputs(model.get_base_model())
    with_adapter = outputs(model, arguments)
    plain = model.merge_and_unload()
    assert plain.state_dict().keys() == build(case).state_dict().keys()
    torch.testing.assert_close(outputs(plain, arguments), with_adapter, rtol=1e-10, atol=1e-12)


@every
def test_saving_and_loading_is_the_identity(case: Case, tmp_path: Path):
    model = trained(case)
    arguments = inputs(model.get_base_model())
    model.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    loaded = PeftModel.from_pretrained(build(case), tmp_path)
    assert type(loaded) is type(model)
    torch.testing.assert_close(outputs(loaded, arguments), outputs(model, arguments), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@every
def test_what_is_saved_is_what_is_trained(case: Case, tmp_path: Path):
    model = trained(case)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    drawn = {key for key, tensor in state.items() if tensor.data_ptr() in buffers(model)}
    tensors = load_peft_weights(tmp_path)
    # What modules have in common may be saved under each one's name.
    keys = {tensor.data_ptr(): key for key, tensor in state.items()}.values()
    numbers = sum(tensors[key].numel() for key in keys if key not in drawn)
    assert numbers == model.get_nb_trainable_parameters()[0]


@every
def test_switched_off_the_model_is_its_base(case: Case):
    base, model = build(case), trained(case)
    arguments = inputs(base)
    with_adapter = outputs(model, arguments)
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with model.disable_adapter():
        same = torch.equal(outputs(model, arguments), outputs(base, arguments))
    assert same or not case.keeps_base
    assert torch.equal(outputs(model, arguments), with_adapter)
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@every
def test_unloading_gives_the_base_back(case: Case):
    model = trained(case)
    arguments = inputs(model.get_base_model())
    with model.disable_adapter():
        base_outputs = outputs(model, arguments)
    plain = model.unload()
    assert not list(adapter_layers(plain))
    if "modules_to_save" not in case.config and "task_type" not in case.config:
        assert torch.equal(outputs(plain, arguments), base_outputs)


@sociable
def test_a_second_adapter_on_a_model_in_evaluation_mode_is_in_evaluation_mode(case: Case):
    model = adapt(case).eval()
    model.add_adapter("second", resolve(METHODS, case.peft_type, what="peft_type")(**case.config))
    assert not [name for name, module in model.named_modules() if module.training]


@sociable
def test_a_second_adapter_leaves_the_first_as_it_is_until_it_is_set(case: Case):
    model = trained(case)
    arguments = inputs(model.get_base_model())
    first = outputs(model, arguments)
    config = resolve(METHODS, case.peft_type, what="peft_type")(**case.config)
    grads = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.add_adapter("second", config)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == grads
    assert torch.equal(outputs(model, arguments), first)
    model.set_adapter("second")
    shake(model, seed=4)
    second = outputs(model, arguments)
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(outputs(model, arguments), first)
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(outputs(model, arguments), second)
    assert not any(".default" in name for name in model.state_dict())


@every
def test_gradient_reaches_the_adapter_through_a_half_precision_base(case: Case):
    torch.manual_seed(11)
    config = resolve(METHODS, case.peft_type, what="peft_type")(**case.config)
    base = build(case, torch.bfloat16)
    model = get_peft_model(base, config)
    own = [tensor for layer in adapter_layers(model) for tensor in layer.adapter_tensors("default")]
    assert {item.tensor.dtype for item in own if item.tensor.is_floating_point()} == {torch.float32}
    arguments = inputs(model.get_base_model())
    result = model(**arguments)
    result = result if isinstance(result, torch.Tensor) else result.logits
    assert result.dtype == torch.bfloat16
    result.float().pow(2).sum().backward()
    assert any(item.tensor.grad is not None and item.tensor.grad.abs().sum() > 0 for item in own)
