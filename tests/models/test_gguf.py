"""GGUF bases: converted once, kept by content, and the same model as Transformers reads from the file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter, LlamaFileType
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftcli.errors import ModelError
from peftcli.files import cache_folder
from peftcli.models.load import load_model, load_tokenizer, resolve_base


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_gguf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file in float32, as llama.cpp's converter would write it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.ALL_F32)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Transformers reads no byte-level vocabulary without a merge.
    tokens.append("ab")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in _gguf_tensors(model):
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = []
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in tops:
            found.append((f"{tops[stem]}.weight", tensor))
            continue
        _, _, layer, part = stem.split(".", 3)
        theirs = parts[part]
        if theirs in heads:
            # llama.cpp keeps the two halves of each rotary pair side by side.
            split = tensor.reshape(heads[theirs], 2, -1, tensor.shape[1])
            found.append((f"blk.{layer}.{theirs}.weight", split.swapaxes(1, 2).reshape(tensor.shape)))
        else:
            found.append((f"blk.{layer}.{theirs}.weight", tensor))
    return found


def test_a_gguf_loads_as_the_model_it_was_made_from(tiny_gguf: Path, tiny_base: Path) -> None:
    base = resolve_base(str(tiny_gguf))
    model = load_model(base, AutoModelForCausalLM).model
    expected = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == 258


def test_a_converted_model_can_be_saved_as_any_other(tiny_gguf: Path, tmp_path: Path) -> None:
    model = load_model(resolve_base(str(tiny_gguf)), AutoModelForCausalLM).model
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_the_chat_template_and_the_special_tokens_are_kept(tiny_gguf: Path, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(resolve_base(str(tiny_gguf)))
    expected = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer.chat_template == expected.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    text = "<|im_start|>user\nسلام 👩‍🚀<|im_end|>\n"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected(text)["input_ids"]


def test_a_second_start_converts_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = resolve_base(str(tiny_gguf), say=said.append)
    assert len(said) == 1
    assert "unpacking it once" in said[0]
    written = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    renamed = tmp_path / "other-name.GGUF"
    renamed.write_bytes(tiny_gguf.read_bytes())
    second = resolve_base(str(renamed), say=said.append)
    assert len(said) == 1
    assert (second.path, second.fingerprint) == (first.path, first.fingerprint)
    assert written == {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}


def test_other_content_is_another_base(tiny_gguf: Path, tmp_path: Path) -> None:
    first = resolve_base(str(tiny_gguf))
    content = bytearray(tiny_gguf.read_bytes())
    content[-4:] = b"\0\0\0\0"
    other = tmp_path / "tiny.gguf"
    other.write_bytes(content)
    second = resolve_base(str(other))
    assert second.path != first.path
    assert second.fingerprint != first.fingerprint


def test_nothing_but_whole_folders_is_left_in_the_cache(tiny_gguf: Path) -> None:
    base = resolve_base(str(tiny_gguf))
    assert [path.name for path in cache_folder("gguf").iterdir()] == [Path(base.path).name]


def test_a_folder_that_lost_its_weights_is_made_again(tiny_gguf: Path) -> None:
    base = resolve_base(str(tiny_gguf))
    (Path(base.path) / "model.safetensors").unlink()
    assert resolve_base(str(tiny_gguf)).path == base.path
    assert (Path(base.path) / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_starts_at_once_both_find_the_model(tiny_gguf: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(resolve_base, [str(tiny_gguf)] * 2)
    assert first == second
    assert [path.name for path in cache_folder("gguf").iterdir()] == [Path(first.path).name]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not a GGUF"), (b"PK\x03\x04zip", "not a GGUF"), (b"GGUF\x03\0\0\0", "cannot be read")],
)
def test_what_is_no_gguf_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        resolve_base(str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gguf_cut_short_is_refused_and_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_base(str(file))
    assert list(cache_folder("gguf").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        resolve_base(str(tiny_gguf))
