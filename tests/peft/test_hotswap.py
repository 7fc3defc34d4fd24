"""Another adapter in the place of one, in a model that may be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli.errors import AdapterError, PeftWarning
from peftcli.methods.ia3.config import IA3Config
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.hotswap import prepare_model_for_compiled_hotswap
from peftcli.peft.hotswap import hotswap_adapter
from peftcli.peft.inject import inject_adapter_in_model
from peftcli.peft.model import PeftModel, get_peft_model

TOKENS = torch.tensor([[1, 2, 3]])
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# Other ranks, factors and layers.
ADAPTERS: dict[str, dict[str, Any]] = {
    "first": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "smaller": {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
    "fewer layers": {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
    },
    "rank-stabilised": {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "larger": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=19, **SIZES)).eval()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        bare = base()
        torch.manual_seed(seed)
        model = get_peft_model(bare, LoraConfig(**fields, task_type="CAUSAL_LM", init_lora_weights=False))
        model.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ADAPTERS}


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(base(), folder)(TOKENS).logits


def test_a_swapped_adapter_is_as_if_it_had_been_loaded(folders: dict[str, Path]):
    model = PeftModel.from_pretrained(base(), folders["first"])
    parameters = dict(model.named_parameters())
    for name in [*ADAPTERS, "first"]:
        hotswap_adapter(model, folders[name], "default")
        torch.testing.assert_close(model(TOKENS).logits, logits(folders[name]))
        assert model.peft_config["default"].r == ADAPTERS[name]["r"]
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_peft_s_swap_gives_the_same(folders: dict[str, Path]):
    import peft
    from peft.utils.hotswap import hotswap_adapter as theirs_swapped

    theirs = peft.PeftModel.from_pretrained(base(), folders["first"])
    ours = PeftModel.from_pretrained(base(), folders["first"])
    for name in ("smaller", "fewer layers", "larger"):
        theirs_swapped(theirs, folders[name], "default")
        hotswap_adapter(ours, folders[name], "default")
        torch.testing.assert_close(ours(TOKENS).logits, theirs(TOKENS).logits)


def test_injected_adapters_are_swapped(folders: dict[str, Path]):
    model = inject_adapter_in_model(LoraConfig(**ADAPTERS["first"]), base())
    hotswap_adapter(model, folders["smaller"], "default")
    torch.testing.assert_close(model(TOKENS).logits, logits(folders["smaller"]))
    assert model.peft_config["default"].r == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_takes_other_ranks_and_factors_without_being_compiled_anew(folders: dict[str, Path]):
    model = PeftModel.from_pretrained(base(), folders["smaller"])
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=model.peft_config)
    torch.testing.assert_close(model(TOKENS).logits, logits(folders["smaller"]))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled(TOKENS)
        for name in ("larger", "first", "fewer layers", "smaller"):
            hotswap_adapter(compiled, folders[name], "default")
            torch.testing.assert_close(compiled(TOKENS).logits, logits(folders[name]))


def test_a_prepared_model_trains_and_is_swapped_as_any(folders: dict[str, Path]):
    model = PeftModel.from_pretrained(base(), folders["first"], is_trainable=True)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    model(TOKENS).logits.sum().backward()
    hotswap_adapter(model, folders["patterns"], "default")
    torch.testing.assert_close(model(TOKENS).logits, logits(folders["patterns"]))
    factors = {
        float(value)
        for layer in model.base_model.layers()
        for value in layer.scaling.values()
        if isinstance(value, torch.Tensor)
    }
    assert factors == {4.0, 2.0, 0.75}


def test_what_cannot_be_swapped_is_refused_and_changes_nothing(folders: dict[str, Path], tmp_path: Path):
    model = PeftModel.from_pretrained(base(), folders["fewer layers"])
    before = model(TOKENS).logits
    with pytest.raises(AdapterError, match="which the old one does not have"):
        hotswap_adapter(model, folders["first"], "default")
    get_peft_model(base(), LoraConfig(**ADAPTERS["first"], use_dora=True)).save_pretrained(tmp_path / "dora")
    with pytest.raises(AdapterError, match="use_dora is True in the new adapter"):
        hotswap_adapter(model, tmp_path / "dora", "default")
    with pytest.raises(AdapterError, match="there is no adapter 'other'"):
        hotswap_adapter(model, folders["first"], "other")
    assert torch.equal(model(TOKENS).logits, before)
    model.merge_adapter()
    with pytest.raises(AdapterError, match="is merged into the model"):
        hotswap_adapter(model, folders["fewer layers"], "default")
    ia3 = get_peft_model(base(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    ia3.save_pretrained(tmp_path / "ia3")
    with pytest.raises(AdapterError, match="cannot be swapped while they are in use"):
        hotswap_adapter(ia3, tmp_path / "ia3", "default")


def test_a_model_that_cannot_be_prepared_is_refused(folders: dict[str, Path]):
    with pytest.raises(AdapterError, match="no LoRA layers"):
        prepare_model_for_compiled_hotswap(base())
    model = PeftModel.from_pretrained(base(), folders["first"])
    with pytest.raises(AdapterError, match="target_rank is 2, and the adapter 'default' has rank 4"):
        prepare_model_for_compiled_hotswap(model, target_rank=2)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(AdapterError, match="compiled already"):
        prepare_model_for_compiled_hotswap(compiled)
    with pytest.warns(PeftWarning, match="compiled already"):
        prepare_model_for_compiled_hotswap(compiled, check_compiled="warn")
