"""Adapters come from the Hub and go to it; an adapter alone brings the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import peftcli
from peftcli.adapters.config import PeftConfig
from peftcli.errors import AdapterError, HubError
from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
)
from peftcli.peft.model import PeftModel, PeftModelForCausalLM, get_peft_model
from peftcli.peft.storage import check_if_peft_model
from tests.conftest import byte_tokenizer
from tests.hub_server import READER, TOKEN, HubServer

pytestmark = [
    # The Hub's client and its HTTP library, while it uploads a large file.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # PEFT asks the Hub whether the base's vocabulary has its first size.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file:UserWarning"),
]

TOKENS = torch.tensor([[1, 2, 3]])
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def base_folder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=259, **SIZES)).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def adapted(base_folder: str, **changes) -> PeftModel:
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return get_peft_model(
        LlamaForCausalLM.from_pretrained(base_folder), LoraConfig(**fields | changes)
    ).eval()


def test_a_pushed_adapter_comes_back_by_its_name_and_is_the_same(local_hub: HubServer, base_folder: str):
    model = adapted(base_folder)
    commit = model.push_to_hub("tester/adapter", commit_message="first", private=True)
    repository = local_hub.repositories["tester/adapter"]
    assert repository.branches["main"][-1][0] == commit.oid
    assert set(repository.branches["main"][-1][1]) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert repository.messages == ["first"]
    assert repository.private
    local_hub.requests.clear()
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), "tester/adapter")
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    asked = {path.rpartition("/")[2] for _, path in local_hub.requests}
    assert asked == {"adapter_config.json", "adapter_model.safetensors"}
    assert loaded.load_adapter("tester/adapter", "again") == ([], [])
    assert check_if_peft_model("tester/adapter")


def test_peft_reads_from_the_hub_what_was_pushed(local_hub: HubServer, base_folder: str):
    model = adapted(base_folder)
    model.push_to_hub("tester/adapter")
    theirs = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), "tester/adapter")
    torch.testing.assert_close(theirs(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_a_revision_and_a_subfolder_are_those_asked_for(local_hub: HubServer, base_folder: str):
    first, second = adapted(base_folder), adapted(base_folder)
    first.push_to_hub("tester/adapter", revision="v1")
    second.add_adapter("other", LoraConfig(r=3, target_modules=["q_proj"]))
    second.push_to_hub("tester/adapter")
    base = LlamaForCausalLM.from_pretrained(base_folder)
    old = PeftModel.from_pretrained(base, "tester/adapter", revision="v1")
    assert torch.equal(old(input_ids=TOKENS).logits, first(input_ids=TOKENS).logits)
    assert PeftConfig.from_pretrained("tester/adapter", "other").r == 3
    old.load_adapter("tester/adapter", "other", subfolder="other")
    assert old.peft_config["other"].r == 3


def test_what_the_hub_does_not_have_is_said_in_one_line(
    local_hub: HubServer, base_folder: str, monkeypatch: pytest.MonkeyPatch
):
    adapted(base_folder).push_to_hub("tester/adapter", private=True)
    local_hub.add("tester/empty")
    cases = {
        ("tester/nothing", "main"): (AdapterError, "neither a folder here nor a repository"),
        ("tester/adapter", "v9"): (AdapterError, "check the revision"),
        ("tester/empty", "main"): (AdapterError, r"has no adapter_config\.json"),
        ("no such/folder/at all", "main"): (AdapterError, "neither a folder here nor a Hub id"),
    }
    for (name, revision), (kind, words) in cases.items():
        with pytest.raises(kind, match=words) as caught:
            PeftConfig.from_pretrained(name, revision=revision)
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)
    assert not check_if_peft_model("tester/nothing")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match="may not write"):
        adapted(base_folder).push_to_hub("tester/adapter")
    with pytest.raises(HubError, match="is public"):
        adapted(base_folder).push_to_hub("tester/empty", private=True, token=TOKEN)


def test_without_a_network_the_cache_serves_and_what_is_not_in_it_is_named(
    local_hub: HubServer, base_folder: str, monkeypatch: pytest.MonkeyPatch
):
    adapted(base_folder).push_to_hub("tester/adapter")
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), "tester/adapter")
    asked = len(local_hub.requests)
    assert PeftConfig.from_pretrained("tester/adapter", local_files_only=True).r == 2
    with pytest.raises(HubError, match="not in the cache"):
        PeftConfig.from_pretrained("tester/other", local_files_only=True)
    assert len(local_hub.requests) == asked


def test_an_option_that_is_none_of_the_hub_s_is_refused(base_folder: str, tmp_path: Path):
    adapted(base_folder).save_pretrained(tmp_path / "adapter")
    with pytest.raises(TypeError, match="revison"):
        PeftConfig.from_pretrained(tmp_path / "adapter", revison="v1")


def test_a_config_alone_can_be_pushed(local_hub: HubServer):
    LoraConfig(r=5).push_to_hub("tester/config")
    assert PeftConfig.from_pretrained("tester/config").r == 5


def test_a_card_names_base_and_method_as_peft_s_does_and_keeps_what_a_user_wrote(
    local_hub: HubServer, base_folder: str, tmp_path: Path
):
    def metadata(folder: Path) -> dict:
        from huggingface_hub import ModelCard

        return ModelCard.load(folder / "README.md").data.to_dict()

    base = LlamaForCausalLM.from_pretrained(base_folder)
    base.name_or_path = base.config._name_or_path = "org/base"
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    get_peft_model(base, LoraConfig(**fields)).save_pretrained(tmp_path / "ours")
    base = LlamaForCausalLM.from_pretrained(base_folder)
    base.name_or_path = base.config._name_or_path = "org/base"
    peft.get_peft_model(base, peft.LoraConfig(**fields)).save_pretrained(tmp_path / "theirs")
    ours, theirs = metadata(tmp_path / "ours"), metadata(tmp_path / "theirs")
    assert set(ours.pop("tags")) == {*theirs.pop("tags"), "peft"}
    assert ours == theirs

    card = tmp_path / "ours" / "README.md"
    card.write_text("---\nlicense: mit\ntags: [mine]\n---\nMy own words.\n")
    fresh = LlamaForCausalLM.from_pretrained(base_folder)
    PeftModel.from_pretrained(fresh, tmp_path / "ours").save_pretrained(tmp_path / "ours")
    assert card.read_text().endswith("---\nMy own words.\n")
    assert metadata(tmp_path / "ours")["license"] == "mit"
    assert {"mine", "lora"} <= set(metadata(tmp_path / "ours")["tags"])


def test_a_card_does_not_name_a_folder_of_this_machine(base_folder: str, tmp_path: Path):
    adapted(base_folder).save_pretrained(tmp_path / "adapter")
    assert "base_model:" not in (tmp_path / "adapter" / "README.md").read_text()


# An adapter alone.


def test_an_adapter_s_folder_brings_its_base(base_folder: str, tmp_path: Path):
    model = adapted(base_folder)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert type(loaded) is PeftModelForCausalLM
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trained = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", "mine", is_trainable=True)
    assert trained.active_adapter == "mine"
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(theirs(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_an_adapter_on_the_hub_brings_its_base(local_hub: HubServer, base_folder: str):
    model = adapted(base_folder)
    model.push_to_hub("tester/adapter", private=True)
    loaded = AutoPeftModelForCausalLM.from_pretrained("tester/adapter", token=TOKEN, revision="main")
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_an_adapter_with_a_task_of_no_class_names_its_base_s_class(tmp_path: Path):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=19, num_labels=3, **SIZES)).save_pretrained(
        tmp_path / "base"
    )
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is PeftModel
    assert isinstance(loaded.get_base_model(), BertForSequenceClassification)
    assert torch.equal(loaded(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)


def test_a_base_s_class_from_a_package_that_is_not_listed_is_not_imported(tmp_path: Path, base_folder: str):
    adapted(base_folder, task_type=None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "Popen", "parent_library": "subprocess"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"import_allowlist=\['subprocess'\]"):
        AutoPeftModel.from_pretrained(tmp_path)


def test_the_wrong_class_for_a_task_is_refused_with_the_right_one(tmp_path: Path, base_folder: str):
    adapted(base_folder).save_pretrained(tmp_path / "adapter")
    for kind in (AutoPeftModel, AutoPeftModelForSequenceClassification):
        with pytest.raises(AdapterError, match="CAUSAL_LM; use AutoPeftModelForCausalLM"):
            kind.from_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match=r"call AutoPeftModelForCausalLM\.from_pretrained"):
        AutoPeftModelForCausalLM()


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_base_gets_as_many_embeddings_as_the_adapter_has(
    base_folder: str, tmp_path: Path, with_tokenizer: bool
):
    base = LlamaForCausalLM.from_pretrained(base_folder)
    base.resize_token_embeddings(261, mean_resizing=False)
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    # With a tokenizer, the vocabulary's size is its; without, that of the embeddings in the file.
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=not with_tokenizer)
    if with_tokenizer:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["<one>", "<two>"])
        tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert len(loaded.get_input_embeddings().weight) == 261
    if not with_tokenizer:
        tokens = torch.tensor([[1, 260]])
        assert torch.equal(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_the_tables_hold_what_is_registered():
    for peft_type, config in peftcli.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        assert config.__name__ == peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].__name__
        assert (
            peftcli.PEFT_TYPE_TO_TUNER_MAPPING[peft_type].prefix
            == (peftcli.PEFT_TYPE_TO_PREFIX_MAPPING[peft_type])
        )
    assert peftcli.PEFT_TYPE_TO_CONFIG_MAPPING["LORA"] is LoraConfig
    assert "ADAMSS" not in peftcli.PEFT_TYPE_TO_CONFIG_MAPPING
    assert peftcli.get_peft_config({"peft_type": "LORA", "r": 3}) == LoraConfig(r=3)


def test_errors_have_peft_s_names(base_folder: str):
    with pytest.raises(peftcli.NoMatchingPeftModuleError, match="matches no module"):
        adapted(base_folder, target_modules=["nothing"])
    assert issubclass(peftcli.NoMatchingPeftModuleError, peftcli.PeftError)
    assert issubclass(peftcli.NoMatchingPeftModuleError, ValueError)
    assert issubclass(peftcli.PeftWarning, UserWarning)
