"""What many prompts begin with alike is read once, and every prompt gets what it gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    set_seed,
)

from peftcli.methods.lora.config import LoraConfig
from peftcli.peft.model import get_peft_model
from peftcli.run.generate import Generator
from peftcli.run.prefix import Prefix, common_start
from tests.run.test_generate import chat_run, lock_of, opened, tiny_gpt2  # noqa: F401  (fixtures)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 259}
IDS = {"bos_token_id": None, "eos_token_id": 258, "pad_token_id": 256}
BASES = {
    "mistral with a window that holds the prefix but no padding": MistralConfig(
        intermediate_size=48, num_key_value_heads=2, sliding_window=80, **SIZES, **IDS
    ),
    "opt": OPTConfig(ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=256, **SIZES, **IDS),
    "bloom": BloomConfig(**SIZES, **IDS),
    "mamba": MambaConfig(state_size=4, **SIZES, **IDS),
}
TARGETS = {"bloom": ["query_key_value"], "mamba": ["in_proj"]}
SHARED = "You answer in few words, and only with what is known for certain."
ENDS = [
    "a",
    "What is it?",
    "b\nc",
    "one two three",
    "why",
    "when was that",
    "who",
    "👩‍🚀",
    "no",
    "yes and no",
]


def prompts_of(generator: Generator) -> list[list[int]]:
    return [generator.encode(SHARED + end) for end in ENDS]


def with_reads(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each batch begins with that are not read again."""
    reads: list[int] = []
    generate = type(generator.model).generate

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        reads.append(0 if cache is None else cache.get_seq_length())
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(generator.model), "generate", noted)
    return reads


def alone(generator: Generator, prompts: list[list[int]]) -> list[Any]:
    return [generator.stream(ids, lambda _: None) for ids in prompts]


@pytest.fixture(params=BASES)
def run_of(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> tuple[str, Path]:
    set_seed(0)
    config = BASES[request.param]
    model = AutoModelForCausalLM.from_config(config)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    targets = TARGETS.get(config.model_type, ["q_proj", "v_proj"])
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    lora.base_model_name_or_path = str(tmp_path / "base")
    get_peft_model(model, lora).save_pretrained(str(tmp_path / "run"))
    lock_of(tmp_path / "base", tmp_path / "run", "text")
    return request.param, tmp_path / "run"


def test_prompts_that_begin_alike_get_what_they_get_alone(
    chat_run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    generator = opened(chat_run)
    prompts = prompts_of(generator)
    wanted = alone(generator, prompts)
    reads = with_reads(generator, monkeypatch)
    capfd.readouterr()
    assert generator.complete(prompts, 4) == wanted
    assert capfd.readouterr().err == ""
    shared = len(common_start(prompts))
    assert shared > 60
    # The prefix, the two trials, and three batches.
    assert reads == [0, shared, 0, shared, shared, shared]


def test_whatever_a_model_keeps_the_answers_are_those_of_each_prompt_alone(
    run_of: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = run_of
    generator = opened(folder)
    prompts = prompts_of(generator)
    wanted = alone(generator, prompts)
    reads = with_reads(generator, monkeypatch)
    assert generator.complete(prompts, 4) == wanted
    assert (reads[-1] > 0) == (name in {"opt", "bloom"})


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"temperature": 0.7}])
def test_beams_read_all_and_sampling_the_rest(
    chat_run: Path,  # noqa: F811
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peftcli.run.sampling import Sampling

    generator = opened(chat_run, Sampling(max_new_tokens=5, **settings))
    reads = with_reads(generator, monkeypatch)
    generator.complete(prompts_of(generator), 4)
    assert (reads[-1] > 0) == ("temperature" in settings)


def test_few_prompts_or_little_in_common_are_read_as_they_are(
    chat_run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = opened(chat_run)
    reads = with_reads(generator, monkeypatch)
    generator.complete(prompts_of(generator)[:7], 4)
    generator.complete([[at, *range(20)] for at in range(10)], 5)
    assert reads == [0] * 4


def test_a_model_that_says_something_else_with_a_prefix_reads_all(
    chat_run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = opened(chat_run)
    prompts = prompts_of(generator)
    wanted = generator.complete(prompts, 4)
    own = Prefix.cache

    def spoiled(self: Prefix, rows: int) -> Any:
        cache = own(self, rows)
        cache.layers[0].values.mul_(1.1)
        return cache

    monkeypatch.setattr(Prefix, "cache", spoiled)
    reads = with_reads(generator, monkeypatch)
    assert generator.complete(prompts, 4) == wanted
    assert reads[-3:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("prompts", "start"),
    [
        ([], []),
        ([[1, 2, 3]], [1, 2]),
        ([[1, 2, 3], [1, 2, 4, 5]], [1, 2]),
        ([[1, 2], [1, 2, 4]], [1]),
        ([[1, 2, 9], [1, 2, 9], [1, 2, 9]], [1, 2]),
        ([[5], [6, 7]], []),
    ],
)
def test_a_common_start_leaves_every_prompt_a_token(prompts: list[list[int]], start: list[int]) -> None:
    assert common_start(prompts) == start


def test_generating_leaves_the_prefix_as_it_was(chat_run: Path) -> None:  # noqa: F811
    generator = opened(chat_run)
    prompts = prompts_of(generator)
    assert generator.complete(prompts, 3) == generator.complete(prompts, 10)
    torch.manual_seed(0)
