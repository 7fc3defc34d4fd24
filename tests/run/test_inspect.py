"""What `inspect` finds out about adapters: right numbers, whoever wrote them, and a clear error for broken ones."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peftcli.errors import AdapterError, ModelError, PeftcliError
from peftcli.run import adapter as adapter_module
from peftcli.run.adapter import MOST_HEAD_BYTES, read_adapter
from peftcli.run.difference import compare
from peftcli.run.inspect import inspect
from peftcli.run.lint.lint import TARGETS, lint
from tests.methods.cases import CASES
from tests.methods.models import llama
from tests.methods.prompt_cases import PROMPT_CASES
from tests.run.adapters import WEIGHTS, change_config, change_tensors, saved, trained

METHODS_ONCE = {case.peft_type: (case.build, case.config) for case in reversed(CASES)} | {
    case.peft_type: (case.build, case.arguments()) for case in reversed(PROMPT_CASES)
}


@pytest.fixture(autouse=True)
def _nothing_is_unpickled(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


def lora_norms(folder: Path, scaling: float) -> dict[str, float]:
    tensors = load_file(folder / WEIGHTS)
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scaling
        * float((tensors[key.replace("lora_A", "lora_B")].double() @ tensors[key].double()).norm())
        for key in tensors
        if key.endswith("lora_A.weight")
    }


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_the_norms_of_lora_are_those_of_its_products(tmp_path, rank_stabilised):
    saved(tmp_path, r=4, lora_alpha=6, use_rslora=rank_stabilised, target_modules=["q_proj", "down_proj"])
    found = inspect(tmp_path)
    norms = lora_norms(tmp_path, 3 if rank_stabilised else 1.5)
    assert {layer.name: layer.norm for layer in found.layers} == pytest.approx(norms)
    assert found.norm == pytest.approx(math.sqrt(sum(norm**2 for norm in norms.values())))
    assert (found.ranks, found.targets) == ({4: 4}, {"down_proj": 2, "q_proj": 2})
    assert [layer.shape for layer in found.layers] == [(8, 12), (8, 8)] * 2


def test_counts_are_those_of_the_file(tmp_path):
    saved(tmp_path, modules_to_save=["lm_head"], target_modules=["q_proj"])
    tensors = load_file(tmp_path / WEIGHTS)
    found = inspect(tmp_path)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.adapter.size == (tmp_path / WEIGHTS).stat().st_size
    assert found.whole == ["lm_head.weight"]
    assert found.dtypes == {"float32": found.parameters}
    assert found.settings() == {"modules_to_save": ["lm_head"]}


def test_what_stands_beside_is_counted(tmp_path):
    saved(tmp_path, target_modules=["q_proj"])
    for name in ("tokenizer.json", "tokenizer_config.json", "recipe.lock.yaml", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint-3").mkdir()
    assert inspect(tmp_path).beside == {
        "tokenizer": 2, "recipe.lock.yaml": 1, "metrics.jsonl": 1, "README.md": 1, "checkpoints": 1
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS_ONCE)
def test_adapters_of_every_method_can_be_looked_at_and_differ_in_nothing_from_themselves(tmp_path, method):
    build, config = METHODS_ONCE[method]
    trained(build(), {"peft_type": method, **config}).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert found.config.peft_type == method
    assert found.layers or found.whole
    assert all(layer.norm > 0 for layer in found.layers)
    assert not found.not_finite
    json.dumps(found.as_dict(), allow_nan=False)
    assert len(found.lines()) > 5
    same = compare(found, inspect(tmp_path))
    assert same.is_same
    assert same.distance == 0
    assert not found.layers or same.cosine == pytest.approx(1)
    # PEFT's own file, of its own model.
    assert not [finding for finding in lint(tmp_path, "peft").findings if finding.is_error]


def test_an_adapter_that_peft_wrote_is_the_same_to_us(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False, use_rslora=True)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert {layer.name: layer.norm for layer in found.layers} == pytest.approx(
        lora_norms(tmp_path, 8 / math.sqrt(3))
    )
    assert found.as_dict()["peft_version"] == peft.__version__


# Differences.


def test_an_adapter_of_twice_the_strength_points_the_same_way(tmp_path):
    one = saved(tmp_path / "one", lora_alpha=8, target_modules=["q_proj"])
    other = saved(tmp_path / "other", lora_alpha=16, target_modules=["q_proj"])
    difference = compare(inspect(one), inspect(other))
    assert difference.fields == {"lora_alpha": (8, 16)}
    assert difference.cosine == pytest.approx(1)
    assert difference.distance == pytest.approx(difference.one.norm)
    assert not difference.is_same


def test_adapters_of_other_ranks_and_methods_are_compared_by_what_they_add(tmp_path):
    def dense(folder):
        base = llama().double()
        before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
        merged = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
        return merged.model.layers[0].self_attn.q_proj.weight.detach() - before

    folders = [
        saved(tmp_path / "rank 2", r=2, target_modules=["q_proj"]),
        saved(tmp_path / "rank 3", r=3, target_modules=["q_proj"], seed=5),
        saved(tmp_path / "lokr", peft_type="LOKR", r=2, target_modules=["q_proj"]),
    ]
    deltas = [dense(folder) for folder in folders]
    for at, other in ((0, 1), (0, 2), (1, 2), (2, 1)):
        found = compare(inspect(folders[at]), inspect(folders[other])).layers[0]
        distance = float((deltas[at] - deltas[other]).norm())
        cosine = float((deltas[at] * deltas[other]).sum() / deltas[at].norm() / deltas[other].norm())
        assert (found.distance, found.cosine) == pytest.approx((distance, cosine), rel=1e-5)


def test_layers_that_only_one_has_are_named(tmp_path):
    one = saved(tmp_path / "one", target_modules=["q_proj"])
    other = saved(tmp_path / "other", target_modules=["v_proj"], modules_to_save=["lm_head"])
    difference = compare(inspect(one), inspect(other))
    assert difference.only[0] == [f"model.layers.{at}.self_attn.q_proj" for at in (0, 1)]
    assert difference.only[1] == [
        *(f"model.layers.{at}.self_attn.v_proj" for at in (0, 1)),
        "lm_head.weight",
    ]
    assert difference.cosine is None
    assert sum("only in" in line for line in difference.lines()) == 2
    json.dumps(difference.as_dict(), allow_nan=False)


def test_modules_that_are_saved_whole_are_compared_too(tmp_path):
    one = saved(tmp_path / "one", target_modules=["q_proj"], modules_to_save=["lm_head"])
    other = saved(tmp_path / "other", target_modules=["q_proj"], modules_to_save=["lm_head"])
    change_tensors(other, lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.ones(23, 8)})
    head = load_file(one / WEIGHTS)["base_model.model.lm_head.weight"]
    layers = {layer.name: layer.distance for layer in compare(inspect(one), inspect(other)).layers}
    assert layers.pop("lm_head.weight") == pytest.approx(float((head - 1).norm()))
    assert set(layers.values()) == {0.0}


def test_values_for_other_places_are_not_compared(tmp_path):
    config = {"peft_type": "SHIRA", "r": 1, "target_modules": ["q_proj"]}
    one = saved(tmp_path / "one", random_seed=1, **config)
    other = saved(tmp_path / "other", random_seed=2, **config)
    difference = compare(inspect(one), inspect(other))
    assert [layer.distance for layer in difference.layers] == [None, None]
    assert "cannot be compared" in difference.lines()[-1]


# Broken and hostile folders.


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    saved(tmp_path, target_modules=["q_proj"])

    def spoil(tensors):
        key = next(key for key in tensors if "layers.1" in key and "lora_B" in key)
        tensors[key][0, 0] = value
        return tensors

    change_tensors(tmp_path, spoil)
    found = inspect(tmp_path)
    assert found.not_finite == ["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    with pytest.raises(AdapterError, match=r"layers\.1.*not finite"):
        found.enforce()
    assert "null" in json.dumps(found.as_dict(), allow_nan=False)
    assert not lint(tmp_path, "vllm").loads
    json.dumps(compare(found, found).as_dict(), allow_nan=False)


def test_every_type_of_number_can_be_read(tmp_path):
    saved(tmp_path, target_modules=["q_proj"])
    names = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float8_e4m3fn: "f8_e4m3"}
    for dtype, name in names.items():
        change_tensors(tmp_path, lambda tensors, dtype=dtype: {k: v.to(dtype) for k, v in tensors.items()})
        found = inspect(tmp_path)
        assert list(found.dtypes) == [name]
        assert found.norm > 0


@pytest.mark.parametrize("name", adapter_module.PICKLES)
def test_pickles_are_refused_unread(tmp_path, name):
    saved(tmp_path, target_modules=["q_proj"])
    (tmp_path / WEIGHTS).rename(tmp_path / name)
    with pytest.raises(AdapterError, match=f"{name} is a pickle, which can run code"):
        inspect(tmp_path)


def _head(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


FILES = {
    "nothing": b"",
    "no head": b"\xff" * 8,
    "no JSON": _head(b"{"),
    "a list": _head(b"[]"),
    "deep": _head(b'{"a":' * 100_000),
    "offsets past the end": _head(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"1234"),
    "a wrong shape": _head(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"1234"),
    "an unknown type": _head(b'{"a":{"dtype":"X7","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "a shape that overflows": _head(
        b'{"a":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,4]}}', b"1234"
    ),
    "a large head": _head(b" " * (MOST_HEAD_BYTES + 1)),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_a_damaged_file_is_named(tmp_path, content):
    saved(tmp_path, target_modules=["q_proj"])
    (tmp_path / WEIGHTS).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(AdapterError, match=WEIGHTS):
        inspect(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"{}", "peft_type: is missing"),
        (b'{"peft_type": "LORA", "r": 1000000000}', "r: must be from 1"),
        (b'{"peft_type": "MAGIC"}', "is not a method"),
        (b'{"peft_type": ["LORA"]}', "is not a method"),
        (b" " * (adapter_module.MOST_CONFIG_BYTES + 1), "which no adapter's config is"),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, content, words):
    saved(tmp_path, target_modules=["q_proj"])
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=words):
        inspect(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        inspect(tmp_path)
    saved(tmp_path, target_modules=["q_proj"])
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=f"has no {WEIGHTS}"):
        inspect(tmp_path)


@pytest.mark.parametrize("method", ["LORA", "ADALORA", "LOHA", "LOKR"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3,), (7, 5), (2, 2, 2, 2, 2), (1, 10**6)])
def test_tensors_of_any_shapes_are_looked_at_or_refused(tmp_path, method, shape):
    settings = {"ADALORA": {"total_step": 10}}.get(method, {"r": 2})
    saved(tmp_path, peft_type=method, target_modules=["q_proj"], **settings)
    keys = list(load_file(tmp_path / WEIGHTS))
    for at in range(4):
        change_tensors(tmp_path, lambda tensors, at=at: tensors | {keys[at % len(keys)]: torch.ones(shape)})
        try:
            inspect(tmp_path)
        except AdapterError as error:
            assert "do not fit together" in str(error)  # noqa: PT017  (either is right)


def test_a_file_of_a_megabyte_cannot_fill_the_memory(tmp_path):
    saved(tmp_path, peft_type="LOKR", r=2, target_modules=["q_proj"])
    thin, layer = torch.ones(50_000, 1), "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {"lokr_w1_a": thin, "lokr_w1_b": thin.T, "lokr_w2_a": thin, "lokr_w2_b": thin.T}
    save_file({f"{layer}.{name}": tensor.clone() for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    (found,) = inspect(tmp_path).layers
    assert not found.is_update
    assert found.norm == pytest.approx(math.sqrt(200_000))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "bias", "use_dora", "use_rslora",
     "modules_to_save", "init_lora_weights", "base_model_name_or_path", "task_type", "auto_mapping", "peft_version",
     "revision", "layers_to_transform", "layer_replication", "alora_invocation_tokens", "target_parameters"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("fuzzed"), target_modules=["q_proj"])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(names | st.text(max_size=6), values, max_size=4))
def test_any_values_of_a_config_are_taken_or_refused(folder, fields):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "changed").mkdir(exist_ok=True)
    (folder / "changed" / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (folder / "changed" / "adapter_config.json").write_text(json.dumps(config | fields))
    try:
        found = inspect(folder / "changed")
        json.dumps(found.as_dict(), allow_nan=False)
        found.lines()
    except PeftcliError:
        pass
    for target in TARGETS:
        json.dumps(lint(folder / "changed", target).as_dict(), allow_nan=False)


def test_keys_without_a_layer_are_whole(tmp_path):
    saved(tmp_path, target_modules=["q_proj"])
    odd = {
        "lora_A.weight": torch.ones(2),
        "base_model.model.lora_B": torch.ones(2),
        "x" * 5000: torch.ones(1),
    }
    change_tensors(tmp_path, lambda tensors: tensors | odd)
    assert len(inspect(tmp_path).whole) == 3
    assert len(read_adapter(tmp_path).heads) == 7


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    base = llama(num_hidden_layers=12)
    saved(tmp_path, base, target_modules=["q_proj"])
    assert [layer.name.split(".")[2] for layer in inspect(tmp_path).layers] == list(map(str, range(12)))


def test_settings_that_are_not_the_methods_own_are_not_listed_twice(tmp_path):
    saved(tmp_path, target_modules=["q_proj"], task_type="CAUSAL_LM", r=4)
    change_config(tmp_path, revision="main")
    found = inspect(tmp_path)
    assert found.settings() == {"r": 4}
    assert found.as_dict()["revision"] == "main"
