"""From a few pictures to a prompt that draws, through the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from peftcli.cli.app import run as command
from tests.tasks.drawings import PROMPT, ball, sections, write_balls, write_pipeline


def write_recipe(path: Path, base: Path, rows: Path, **given: Any) -> Path:
    """A recipe of six steps, over pictures and the same as held-out ones."""
    training = {
        "output_dir": str(path.parent / "run"),
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1.0e-2,
        "eval_strategy": "steps",
        "eval_steps": 3,
    }
    data = {"train": {"path": str(rows)}, "eval": {"path": str(rows)}}
    given["training"] = training | given.get("training", {})
    path.write_text(yaml.safe_dump(sections(base, **{"data": data, **given})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, four pictures of a ball, and a run that has learnt from them beside class images."""
    folder = tmp_path_factory.mktemp("pictures")
    base = write_pipeline(folder / "base")
    rows = write_balls(folder)
    (folder / "class").mkdir()
    for at in range(3):
        ball(at, "blue").save(folder / "class" / f"{at}.png")
    task = {
        "with_prior_preservation": True,
        "class_prompt": "a ball",
        "class_data_dir": str(folder / "class"),
        "num_class_images": 3,
        "train_text_encoder": True,
    }
    adapter = {"lora_dropout": 0.2, "lora_alpha": 8}
    recipe = write_recipe(folder / "recipe.yaml", base, rows, task=task, adapter=adapter)
    assert command(["train", str(recipe)]) == 0
    return folder


def test_training_lowers_the_error_of_noise_that_is_always_the_same(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["eval", str(project / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["eval_loss"] < found["base"]["eval_loss"] - 0.01
    lines = (project / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert found["adapter"]["eval_loss"] == pytest.approx(last, rel=1e-5)


def test_a_run_that_goes_on_ends_with_the_bytes_of_one_that_was_never_stopped(
    project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    override = f"training.output_dir={tmp_path / 'run'}"
    assert command(["train", str(project / "recipe.yaml"), "--set", override, "--resume"]) == 0
    for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (project / "run" / name).read_bytes()
    assert (project / "run" / "checkpoint-2" / name).read_bytes() != (project / "run" / name).read_bytes()


def test_generate_writes_a_picture_which_the_seed_decides(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(name: str, *options: str) -> bytes:
        output = tmp_path / name
        arguments = [
            "generate",
            "--adapter",
            str(project / "run"),
            "--prompt",
            PROMPT,
            "--output",
            str(output),
        ]
        assert command([*arguments, "--num-inference-steps", "3", *options]) == 0
        with Image.open(output) as picture:
            assert (picture.format, picture.size) == ("PNG", (32, 32))
        return output.read_bytes()

    first = drawn("one.png", "--seed", "4")
    assert drawn("two.png", "--seed", "4") == first
    others = [
        ["--seed", "5"],
        ["--seed", "4", "--no-adapter"],
        ["--seed", "4", "--guidance-scale", "1"],
        ["--seed", "4", "--negative-prompt", "a box"],
    ]
    assert len({first, *(drawn("other.png", *options) for options in others)}) == 5
    capsys.readouterr()
    unsaid = drawn("three.png", "--json")
    answer = capsys.readouterr()
    found = json.loads(answer.out)
    assert (found["prompt"], found["width"], found["height"]) == (PROMPT, 32, 32)
    assert f"seed {found['seed']}" in answer.err
    assert drawn("four.png", "--seed", str(found["seed"])) == unsaid


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (["--prompt", PROMPT], ("say where the picture goes: --output PICTURE.png", 2)),
        (["--prompt", PROMPT, "--output", "picture.jpg"], ("an adapter that draws a PICTURE.png", 2)),
        (["--prompt", PROMPT, "--output", "nowhere/a.png"], ("there is no folder ", 2)),
        (["--prompt", PROMPT, "--output", "a.png", "--raw"], ("--raw has no meaning", 2)),
        (
            ["--prompt", PROMPT, "--output", "a.png", "--max-new-tokens", "9", "--top-p", "0.5"],
            ("--max-new-tokens, --top-p have no meaning for an adapter that draws", 2),
        ),
        (["--prompt", PROMPT, "--prompt", "b", "--output", "a.png"], ("one --prompt", 2)),
        (["--prompt", " ", "--output", "a.png"], ("the prompt is empty", 3)),
        (["--prompt", "b " * 80, "--output", "a.png"], ("82 tokens, and the text encoder takes 77", 3)),
        (
            ["--prompt", "b", "--negative-prompt", "b " * 80, "--output", "a.png"],
            ("82 tokens, and the text encoder takes 77", 3),
        ),
    ],
)
def test_what_has_no_meaning_for_a_picture_is_refused(
    project: Path,
    options: list[str],
    refused: tuple[str, int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    options = [str(tmp_path / each) if ".png" in each else each for each in options]
    assert command(["generate", "--adapter", str(project / "run"), *options]) == refused[1]
    assert refused[0] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_other_commands_say_what_to_do_instead(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = str(project / "run"), str(tmp_path / "out")
    for arguments, status, words in (
        (["merge", "--adapter", run, "--output", output], 4, "pipe.load_lora_weights"),
        (
            ["predict", "--adapter", run, "--input", str(project / "balls.jsonl"), "--output", output],
            2,
            "generate",
        ),
        (["train", str(project / "recipe.yaml"), "--smoke"], 4, "cannot be built in small"),
    ):
        assert command(arguments) == status
        assert words in capsys.readouterr().err


def test_check_counts_rows_prompts_and_class_images_and_says_that_there_is_no_memory_plan(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["check", str(project / "recipe.yaml"), "--data"]) == 0
    said = capsys.readouterr().err
    assert "4 rows" in said
    assert "class images: 3 in" in said
    assert "pictures of 32 x 32 pixels" in said
    assert "no memory plan" in said


def test_the_card_says_how_diffusers_reads_it_and_push_takes_its_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (project / "run" / "README.md").read_text(encoding="utf-8")
    assert "library_name: diffusers" in card
    assert 'pipe.load_lora_weights(".")' in card
    assert command(["push", str(project / "run"), "me/ball", "--dry-run"]) == 0
    assert "pytorch_lora_weights.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_half_precision_bases_train_and_recompute_their_activations(
    project: Path, tmp_path: Path, dtype: str
) -> None:
    settings = {"bf16": True, "activation_checkpointing": True, "max_steps": 2}
    recipe = write_recipe(
        tmp_path / "recipe.yaml", project / "base", project / "balls.jsonl", training=settings
    )
    options = ["--set", f"dtype={dtype}", "--set", "task.train_text_encoder=true"]
    assert command(["train", str(recipe), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["loss"] < 10 for line in lines if "loss" in line)
