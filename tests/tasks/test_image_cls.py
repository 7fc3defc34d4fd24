"""Laws of IMAGE_CLS: Transformers' loss for every kind of label, PEFT's adapter, and bases of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from peftcli import LoraConfig, get_peft_model
from peftcli.data.example import Pictured
from peftcli.data.pictures import picture
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, ModelError
from peftcli.models.load import load_config, resolve_base
from peftcli.recipe.schema import Recipe
from peftcli.recipe.training import Training
from peftcli.tasks.image_cls import ImageClassification
from peftcli.train.model import trained_model
from tests.bases import tiny_base_for, tiny_vit
from tests.data.writers import write_jsonl

LABELS: dict[str, list[Any]] = {
    "single_label_classification": ["cat", "dog", "ape"],
    "multi_label_classification": [["cat", "dog"], [], ["ape"]],
    "regression": [1.5, -2.0, 3.0],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_for("IMAGE_CLS", tmp_path_factory.mktemp("vit"))


def recipe_of(base: Any, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "base_model": str(base),
            "task_type": "IMAGE_CLS",
            "task": sections.get("task", {}),
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": "unused.jsonl"}} | sections.get("data", {}),
            "training": {"output_dir": "out", "disable_tqdm": True},
        }
    )


def task_of(base: Path, **sections: Any) -> ImageClassification:
    found = resolve_base(str(base), say=lambda _: None)
    processor = ImageClassification.load_processor(found, say=lambda _: None)
    return ImageClassification(recipe_of(base, **sections), processor, load_config(found))


def noise(folder: Path, count: int, mode: str = "RGB") -> list[str]:
    """Files of pictures of random numbers, of several sizes."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{at}-{mode}.png" for at in range(count)]
    for at, path in enumerate(paths):
        values = draw.integers(0, 255, (20 + at, 30, 3)).astype(np.uint8)
        PIL.Image.fromarray(values).convert(mode).save(path)
    return [str(path) for path in paths]


def batch_of(task: ImageClassification, folder: Path, labels: list[Any]) -> Any:
    paths = noise(folder, len(labels))
    examples = [Pictured(picture(path, "image"), label) for path, label in zip(paths, labels, strict=True)]
    rows = [row for (row,) in task.encode(examples)]
    task.settle()
    return task.collate(rows)


def model_of(task: ImageClassification, base: Path) -> Any:
    torch.manual_seed(0)
    return task.load_model(resolve_base(str(base), say=lambda _: None)).model.eval()


@pytest.mark.parametrize("problem", LABELS)
def test_the_loss_is_the_models_own(problem: str, base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch = batch_of(task, tmp_path, LABELS[problem])
    model = model_of(task, base).double()
    total, count = task.loss(model, batch)
    own = model(pixel_values=batch["pixel_values"].double(), labels=batch["labels"]).loss
    assert model.config.problem_type == task.problem_type == problem
    torch.testing.assert_close(total / count, own.double(), rtol=1e-6, atol=0)


def test_a_batch_is_what_transformers_processor_makes_of_each_picture(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch = batch_of(task, tmp_path, ["a", "b"])
    images = [PIL.Image.open(path) for path in noise(tmp_path, 2)]
    wanted = task.processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], wanted, rtol=0, atol=0)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)


def test_an_adapter_is_one_of_peft_with_the_same_outputs(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch = batch_of(task, tmp_path, ["a", "b", "c"])
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"])
    model = get_peft_model(model_of(task, base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model_of(task, base), tmp_path / "adapter").eval()
    torch.testing.assert_close(task.logits(model.eval(), batch), task.logits(theirs, batch))
    assert not [name for name in model.peft_config["default"].target_modules if "classifier" in name]


def test_a_head_that_the_base_brings_is_trained_whole_too(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch_of(task, tmp_path, ["a", "b", "c"])
    model_of(task, base).save_pretrained(tmp_path / "headed")
    loaded = task.load_model(resolve_base(str(tmp_path / "headed"), say=lambda _: None))
    assert not loaded.new
    assert task.heads(loaded) == ["classifier"]


def test_gray_bases_get_gray_pictures(tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    tiny_vit(num_channels=1).save_pretrained(tmp_path / "gray")
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(tmp_path / "gray")
    task = task_of(tmp_path / "gray")
    batch = batch_of(task, tmp_path, ["a", "b"])
    assert batch["pixel_values"].shape == (2, 1, 32, 32)
    task.check_model(model_of(task, tmp_path / "gray"))
    assert "2 pictures made L: 2 RGB" in task.notes()


def test_what_the_processor_makes_must_be_what_the_base_takes(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    model = model_of(task, base)
    task.check_model(model)
    task.processor.size = {"height": 48, "width": 48}
    with pytest.raises(ModelError, match=r"pixel_values of \(3, 48, 48\).*doesn't match"):
        task.check_model(model)


def test_pictures_of_several_sizes_cannot_stand_in_a_batch(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    task.processor.do_resize = False
    with pytest.raises(ModelError, match=r"3 x 20 x 30 and 3 x 21 x 30.*give it one `size`"):
        batch_of(task, tmp_path, ["a", "b"])


def test_a_base_of_no_pictures_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    bert = tiny_base_for("SEQ_CLS", tmp_path)
    with pytest.raises(ModelError, match="is a bert, which Transformers has no model of for IMAGE_CLS"):
        task_of(bert)


def prepared(task: ImageClassification, path: Path, **data: Any) -> Any:
    recipe = recipe_of("base", data={"train": {"path": str(path)}, **data})
    return prepare(recipe.data, encoder=task.encoder(), seed=0, model_max_length=task.max_input())


def test_what_is_done_to_pictures_is_counted(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    paths = [*noise(tmp_path, 2), *noise(tmp_path, 3, "L"), *noise(tmp_path, 1, "RGBA")]
    rows = [{"image": path, "label": f"l{at % 2}"} for at, path in enumerate(paths)]
    report = prepared(task, write_jsonl(tmp_path / "rows.jsonl", rows)).report
    assert "4 pictures made RGB: 3 L, 1 RGBA" in report.notes
    assert report.train.rows == 6
    assert not report.train.tokens


def test_a_picture_that_cannot_be_read_is_named_with_its_row(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(Path(noise(tmp_path, 1)[0]).read_bytes()[:300])
    rows = [{"image": "0-RGB.png", "label": "a"}, {"image": "bad.png", "label": "b"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"image: .*bad\.png cannot be read") as caught:
        prepared(task_of(base), path)
    assert "rows.jsonl" in str(caught.value.where)
    assert "2" in str(caught.value.where)


def test_a_picture_that_was_changed_changes_the_datas_fingerprint(base: Path, tmp_path: Path) -> None:
    one, other = noise(tmp_path, 2)
    rows = [{"image": one, "label": "a"}, {"image": other, "label": "b"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = []
    for _ in range(2):
        found.append(prepared(task_of(base), path).report.train_sources[0].sha256)
        Path(other).write_bytes(Path(one).read_bytes())
    assert found[0].keys() == found[1].keys() == {str(path), f"what {path} names"}
    assert found[0][str(path)] == found[1][str(path)]
    assert found[0] != found[1]


# Batch norms.


def test_a_frozen_batch_norm_keeps_the_statistics_that_no_adapter_saves() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = get_peft_model(
        ResNetForImageClassification(config), LoraConfig(r=2, target_modules=["convolution"])
    )
    images = torch.randn(4, 3, 32, 32) * 5
    before = model.eval()(pixel_values=images).logits
    settings = Training(output_dir="out", use_cpu=True)
    with trained_model(model, Accelerator(cpu=True), settings) as trained:
        model.eval()
        model.train()
        inside = trained.stepped(pixel_values=images).logits
    torch.testing.assert_close(inside, before)
    torch.testing.assert_close(model.eval()(pixel_values=images).logits, before)
    model.train()
    assert not torch.isclose(model(pixel_values=images).logits, before).all()  # as any other model, outside


def test_a_batch_norm_in_a_head_that_is_trained_whole_learns_and_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    last = "resnet.encoder.stages.1"
    model = get_peft_model(
        ResNetForImageClassification(config),
        LoraConfig(r=2, target_modules=["convolution"], modules_to_save=[last, "classifier"]),
    )
    images = torch.randn(4, 3, 32, 32) * 5
    with trained_model(model, Accelerator(cpu=True), Training(output_dir="out", use_cpu=True)) as trained:
        trained.stepped(pixel_values=images)
    statistics = {name: value for name, value in model.state_dict().items() if "running_mean" in name}
    moved = {name for name, value in statistics.items() if value.abs().sum() > 0}
    assert moved == {name for name in statistics if ".modules_to_save." in name}
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(ResNetForImageClassification(config), tmp_path)
    torch.testing.assert_close(
        again.eval()(pixel_values=images).logits, model.eval()(pixel_values=images).logits
    )


def test_the_auto_class_is_transformers_own() -> None:
    assert ImageClassification.auto_class() is AutoModelForImageClassification
