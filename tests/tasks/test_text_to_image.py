"""The task of drawing pictures: its loss is that of diffusers' script, and diffusers reads what it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from peftcli.data.example import Captioned
from peftcli.data.pictures import picture
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.load import load_config, resolve_base
from peftcli.peft.model import PeftModel, get_peft_model
from peftcli.tasks.text_to_image import TextToImage
from tests.tasks.drawings import PROMPT, ball, recipe_of, task_of, write_balls, write_pipeline

LONG = "ball " * 80


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion."""
    return write_pipeline(tmp_path_factory.mktemp("sd") / "base")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Pictures of balls, as rows have them."""
    folder = tmp_path_factory.mktemp("pictures")
    for at in range(4):
        ball(3 * at).save(folder / f"{at}.png")
    return [picture(str(folder / f"{at}.png"), "image") for at in range(4)]


def batch_of(task: TextToImage, photos: list[Any], texts: list[str | None] | None = None) -> dict[str, Any]:
    examples = [
        Captioned(each, text) for each, text in zip(photos, texts or [None] * len(photos), strict=True)
    ]
    return task.collate([row for rows in task.encode(examples) for row in rows])


def adapted(task: TextToImage, *, seed: int = 0) -> PeftModel:
    """The base with an adapter whose weights are drawn, all of them."""
    model = get_peft_model(task.load_model(resolve_base(task.recipe.base_model)).model, task.adapter_config())
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
    return model


def drawn(base: Path, folder: Path | None = None) -> Any:
    """A picture by diffusers' pipeline alone, with the LoRA weights in a folder."""
    from diffusers import StableDiffusionPipeline

    from peftcli.models.diffusion import _quietly
    from peftcli.models.quiet import no_advice_on_torchvision

    with _quietly(), no_advice_on_torchvision():
        pipe = StableDiffusionPipeline.from_pretrained(str(base), safety_checker=None)
        if folder is not None:
            pipe.load_lora_weights(str(folder))
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(5)
    found = pipe(PROMPT, generator=noise, num_inference_steps=4, height=32, width=32)
    return np.asarray(found.images[0])


# The loss.


def of_the_script(base: Path, pixels: Any, prompts: list[str], prior: float | None) -> float:
    """What train_dreambooth_lora.py of diffusers computes of a batch, its class images in the second half."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    text = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        said = unet(noisy, timesteps, text(ids)[0]).sample
    if scheduler.config.prediction_type == "v_prediction":
        noise = scheduler.get_velocity(latents, noise, timesteps)
    if prior is None:
        return float(F.mse_loss(said, noise))
    (said, beside), (noise, other) = said.chunk(2), noise.chunk(2)
    return float(F.mse_loss(said, noise) + prior * F.mse_loss(beside, other))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers_script(
    tmp_path: Path, photos: list[Any], prediction_type: str
) -> None:
    base = write_pipeline(tmp_path / "base", prediction_type=prediction_type)
    task = task_of(base)
    model = task.load_model(resolve_base(str(base))).model.train()
    batch = batch_of(task, photos, ["a red ball", None, "nothing", "a ball"])
    torch.manual_seed(1)
    total, weight = task.loss(model, batch)
    torch.manual_seed(1)
    prompts = ["a red ball", PROMPT, "nothing", "a ball"]
    wanted = of_the_script(base, batch["pixels"], prompts, None)
    assert weight == 4
    assert (total / weight).item() == pytest.approx(wanted, rel=1e-5)


def test_class_images_count_as_in_diffusers_script(base: Path, photos: list[Any], tmp_path: Path) -> None:
    classes = tmp_path / "class"
    classes.mkdir()
    ball(5, "blue").save(classes / "only.png")
    prior = {"with_prior_preservation": True, "class_prompt": "a ball", "class_data_dir": str(classes)}
    task = task_of(base, task=prior | {"num_class_images": 1, "prior_loss_weight": 0.3})
    model = adapted(task)
    with model.disable_adapter(), task.readied(model):
        model.train()
        batch = batch_of(task, photos[:2])
        torch.manual_seed(1)
        total, weight = task.loss(model, batch)
        torch.manual_seed(1)
        torch.randint(1, (2,))  # which class images
        beside = batch_of(task, [picture(str(classes / "only.png"), "image")] * 2)["pixels"]
        both = torch.cat([batch["pixels"], beside])
        wanted = of_the_script(base, both, [PROMPT] * 2 + ["a ball"] * 2, 0.3)
    assert (total / weight).item() == pytest.approx(wanted, rel=1e-5)


def test_an_evaluation_is_the_same_at_every_call_and_however_rows_are_batched(
    base: Path, photos: list[Any]
) -> None:
    task = task_of(base)
    model = adapted(task).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        together, count = task.metrics(model, batch_of(task, photos)).sums["loss"]
        torch.manual_seed(9)
        alone = [task.metrics(model, batch_of(task, [each])).sums["loss"][0] for each in reversed(photos)]
        other = task.metrics(model, batch_of(task, photos, ["a box"] * 4)).sums["loss"][0]
    assert count == 4
    assert float(sum(alone)) == pytest.approx(float(together), rel=1e-5)
    assert float(other) != pytest.approx(float(together), rel=1e-5)
    torch.set_rng_state(before)
    with torch.no_grad():
        task.metrics(model, batch_of(task, photos))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_what_is_adapted_gets_a_gradient(base: Path, photos: list[Any]) -> None:
    for trains_text in (False, True):
        task = task_of(base, task={"train_text_encoder": trains_text})
        model = adapted(task).train()
        total, _ = task.loss(model, batch_of(task, photos))
        total.backward()
        moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
        assert moved == {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert any("text_encoder" in name for name in moved) is trains_text
        assert not any("vae" in name for name, _ in model.named_parameters())
        inner = model.get_base_model()
        assert all(
            weight.grad is None for weight in (*inner.vae.parameters(), *inner.text.embeddings.parameters())
        )


# What is saved.


@pytest.mark.parametrize(
    ("options", "adapter"),
    [
        ({}, {}),
        ({"train_text_encoder": True}, {"lora_alpha": 32}),
        ({}, {"use_rslora": True, "target_modules": ["to_q", "proj_in", "conv1"]}),
        (
            {"train_text_encoder": True},
            {
                "rank_pattern": {
                    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 2,
                    "out_proj": 3,
                }
            },
        ),
        (
            {"train_text_encoder": True},
            {"target_modules": "all-linear", "alpha_pattern": {"attn2.to_v": 20.0}},
        ),
    ],
    ids=["unet", "text encoder", "rslora", "patterns", "all-linear"],
)
def test_diffusers_draws_the_same_with_what_is_saved(
    base: Path, tmp_path: Path, options: dict[str, Any], adapter: dict[str, Any]
) -> None:
    task = task_of(base, task=options, adapter=adapter)
    model = adapted(task)
    model.save_pretrained(tmp_path)
    task.save(tmp_path)
    ours = np.asarray(task.draw(model.eval(), PROMPT, seed=5, num_inference_steps=4))
    assert np.array_equal(drawn(base, tmp_path), ours)
    with model.disable_adapter():
        bare = np.asarray(task.draw(model, PROMPT, seed=5, num_inference_steps=4))
    assert np.array_equal(drawn(base), bare)
    assert not np.array_equal(bare, ours)


def test_the_head_of_the_file_says_rank_and_alpha_as_diffusers_writes_them(
    base: Path, tmp_path: Path
) -> None:
    task = task_of(base, adapter={"r": 3, "lora_alpha": 7})
    adapted(task).save_pretrained(tmp_path)
    task.save(tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
        keys = list(file.keys())
    assert (about["unet.r"], about["unet.lora_alpha"]) == (3, 7)
    assert len(about["unet.target_modules"]) * 2 == len(keys)
    assert not any(name.startswith("text_encoder") for name in (*about, *keys))


def test_peft_reads_the_adapter_onto_the_pipelines_parts(
    base: Path, photos: list[Any], tmp_path: Path
) -> None:
    import peft

    task = task_of(base, task={"train_text_encoder": True})
    ours = adapted(task).eval()
    ours.save_pretrained(tmp_path)
    bare = task.load_model(resolve_base(str(base))).model.eval()
    parts = nn.ModuleDict({"unet": bare.unet, "text_encoder": bare.text})
    peft.PeftModel.from_pretrained(parts, tmp_path)
    latents, ids = torch.randn(1, 4, 16, 16), batch_of(task, photos[:1])["input_ids"]
    with torch.no_grad():
        found, wanted = (model(latents, torch.tensor([300]), ids) for model in (bare, ours))
    torch.testing.assert_close(found, wanted)


# Class images.


def test_class_images_are_drawn_until_there_are_enough_and_are_the_same_again(
    base: Path, tmp_path: Path
) -> None:
    def completed(folder: Path) -> dict[str, bytes]:
        prior = {"with_prior_preservation": True, "class_prompt": "a ball", "class_data_dir": str(folder)}
        task = task_of(base, task=prior | {"num_class_images": 3, "sample_batch_size": 2})
        task.settle()
        notes.append(task.notes()[-1])
        model = adapted(task).train()
        with task.readied(model):
            assert model.training
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    notes: list[str] = []
    first = completed(tmp_path / "one")
    assert sorted(first) == ["class-0000.png", "class-0001.png", "class-0002.png"]
    assert len({*first.values()}) == 3
    (tmp_path / "one" / "class-0001.png").unlink()
    assert completed(tmp_path / "one") == first
    assert completed(tmp_path / "one") == first
    assert "0 in" in notes[0]
    assert "will draw 3 more" in notes[0]
    assert "will draw 1 more" in notes[1]
    assert "draw" not in notes[2].partition("one")[2]


def test_class_images_that_cannot_be_are_refused_before_anything_starts(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "broken.png").write_text("no picture")
    for name, error, words in (
        ("file", RecipeError, "is no folder"),
        ("class", DataError, "is no picture that can be read here"),
    ):
        prior = {
            "with_prior_preservation": True,
            "class_prompt": "a ball",
            "class_data_dir": str(tmp_path / name),
        }
        with pytest.raises(error, match=words):
            task_of(base, task=prior).settle()
    long = {"with_prior_preservation": True, "class_prompt": "b " * 80, "class_data_dir": str(tmp_path)}
    task = task_of(base, task=long)
    with pytest.raises(RecipeError, match="class_prompt: has 82 tokens"):
        task.settle()


# Rows.


def prepared(base: Path, path: Path, **given: Any) -> Any:
    recipe = recipe_of(base, data={"train": {"path": str(path)}} | given.pop("data", {}), **given)
    task = task_of(base, **given)
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=task.max_input())


def test_a_prompt_that_is_too_long_is_refused_with_its_row_or_cut_and_counted(
    base: Path, tmp_path: Path
) -> None:
    path = write_balls(tmp_path, text=LONG)
    with pytest.raises(
        DataError, match=r"balls.jsonl: row 1: 322 prompt tokens are more than .* 77 .*shorten"
    ):
        prepared(base, path)
    found = prepared(base, path, data={"overflow": "truncate"})
    assert "4 of 4 rows cut at" in found.report.train_sources[0].losses()
    tokenizer = task_of(base).processor
    ids = found.train[0]["prompt"]
    assert (len(ids), ids[0], ids[-1]) == (77, tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_a_row_without_text_needs_the_instance_prompt(base: Path, tmp_path: Path) -> None:
    path = write_balls(tmp_path)
    with pytest.raises(DataError, match=r"row 1: has no text.*task.instance_prompt"):
        prepared(base, path, task={"instance_prompt": None})
    assert "4 rows have no text: 'a sks ball'" in " ".join(prepared(base, path).report.notes)


def test_what_is_no_picture_is_refused_with_its_row(base: Path, tmp_path: Path) -> None:
    path = write_balls(tmp_path)
    (tmp_path / "balls" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"row 3: image: .*2.png is no picture"):
        prepared(base, path)
    (tmp_path / "balls" / "2.png").unlink()
    with pytest.raises(DataError, match=r"row 3: image: there is no file"):
        prepared(base, path)


def test_a_picture_that_is_cut_off_is_refused_when_it_is_read(base: Path, tmp_path: Path) -> None:
    ball(3).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) - 40])
    task = task_of(base)
    with pytest.raises(DataError, match=r"torn.png cannot be read"):
        batch_of(task, [picture(str(tmp_path / "torn.png"), "image")])


def test_pixels_are_the_middle_of_the_picture_from_minus_one_to_one(base: Path, tmp_path: Path) -> None:
    drawn = ball(0, size=(64, 32))
    drawn.paste("blue", (0, 0, 16, 32))
    drawn.save(tmp_path / "wide.png")
    pixels = batch_of(task_of(base), [picture(str(tmp_path / "wide.png"), "image")])["pixels"]
    assert pixels.shape == (1, 3, 32, 32)
    wanted = np.asarray(drawn.crop((16, 0, 48, 32)), dtype=np.float32) / 127.5 - 1
    assert np.allclose(pixels[0].permute(1, 2, 0), wanted)
    small = batch_of(task_of(base, task={"resolution": 16}), [picture(str(tmp_path / "wide.png"), "image")])[
        "pixels"
    ]
    assert small.shape == (1, 3, 16, 16)


# Bases.


def changed(base: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a pipeline in which a config says something else."""
    import shutil

    shutil.copytree(base, target)
    content = json.loads((target / file).read_text()) | values
    (target / file).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "is a FluxPipeline, and TEXT_TO_IMAGE trains Stable",
        ),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "is a StableDiffusion3Pipeline"),
        ("model_index.json", {"_class_name": None}, "says no _class_name"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels .*inpainting"),
        ("unet/config.json", {"sample_size": None}, "do not say what they must"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "unheard of"}, "scheduler cannot be made"),
    ],
)
def test_a_pipeline_that_cannot_be_trained_is_refused_by_name(
    base: Path, tmp_path: Path, file: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        task_of(changed(base, tmp_path / "other", file, **values))


def test_weights_in_pickles_or_damaged_are_not_read(base: Path, tmp_path: Path) -> None:
    other = changed(base, tmp_path / "other", "model_index.json")
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    task = task_of(other)
    with pytest.raises(ModelError, match=r"unet.*is damaged"):
        task.load_model(resolve_base(str(other)))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"in unet: diffusion_pytorch_model.bin is a pickle"):
        task.load_model(resolve_base(str(other)))


def test_a_pipeline_is_no_base_for_text_and_a_model_is_none_for_pictures(base: Path, tiny_base: Path) -> None:
    with pytest.raises(
        ModelError, match=r"a StableDiffusionPipeline of diffusers; its task_type is TEXT_TO_IMAGE"
    ):
        load_config(resolve_base(str(base)))
    with pytest.raises(ModelError, match=r"has no model_index.json; TEXT_TO_IMAGE needs"):
        TextToImage.load_config(resolve_base(str(tiny_base)))


def test_a_pipeline_with_other_weights_has_another_fingerprint(base: Path, tmp_path: Path) -> None:
    other = changed(base, tmp_path / "other", "model_index.json")
    assert (
        resolve_base(str(other)).fingerprint
        != resolve_base(
            str(changed(base, tmp_path / "third", "vae/config.json", scaling_factor=0.5))
        ).fingerprint
    )
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    before = resolve_base(str(other)).fingerprint
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert resolve_base(str(other)).fingerprint != before


def test_sizes_and_layers_that_do_not_fit_are_refused(base: Path) -> None:
    with pytest.raises(RecipeError, match=r"task.resolution: must be a multiple of 2"):
        task_of(base, task={"resolution": 31})
    task = task_of(base, task={"train_text_encoder": True}, adapter={"target_modules": r".*\.to_q"})
    with pytest.raises(RecipeError, match=r"task.train_text_encoder: .* none of its layers"):
        task.check_model(adapted(task))
    task = task_of(
        base, task={"train_text_encoder": True}, adapter={"target_modules": r".*(to_q|token_embedding)"}
    )
    with pytest.raises(RecipeError, match=r"adapter.target_modules: names embeddings"):
        task.check_model(adapted(task))
