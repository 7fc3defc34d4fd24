"""Laws of SEMANTIC_SEG: Transformers' loss, metrics at the pictures' size, classes that are known, and whole masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessorPil,
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from peftcli import LoraConfig, get_peft_model
from peftcli.data.example import Segmented
from peftcli.data.pictures import picture
from peftcli.data.prepare import prepare
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.load import load_config, resolve_base
from peftcli.tasks.masks import likeliest, nearest, png
from peftcli.tasks.semantic_seg import SemanticSegmentation
from tests.bases import tiny_base_for
from tests.data.writers import write_jsonl
from tests.tasks.scenes import NAMES, NO_CLASS, recipe_of, scene, write_scenes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_for("SEMANTIC_SEG", tmp_path_factory.mktemp("segformer"))


def task_of(base: Path, **sections: Any) -> SemanticSegmentation:
    found = resolve_base(str(base), say=lambda _: None)
    processor = SemanticSegmentation.load_processor(found, say=lambda _: None)
    return SemanticSegmentation(recipe_of(base, **sections), processor, load_config(found))


def model_of(task: SemanticSegmentation, base: Path) -> Any:
    torch.manual_seed(0)
    return task.load_model(resolve_base(str(base), say=lambda _: None)).model.eval()


def examples(folder: Path, count: int = 3, side: tuple[int, int] = (40, 48)) -> list[Segmented]:
    folder.mkdir(exist_ok=True)
    write_scenes(folder, "some", count, seed=3, side=side)
    paths = [folder / "some" / f"{at}.png" for at in range(count)]
    return [
        Segmented(picture(str(path), "image"), picture(str(path.with_name(f"{path.stem}-mask.png")), "mask"))
        for path in paths
    ]


def batch_of(task: SemanticSegmentation, folder: Path, **options: Any) -> Any:
    rows = [row for (row,) in task.encode(examples(folder, **options))]
    task.settle()
    return task.collate(rows)


def doubled(batch: Any) -> Any:
    return {**batch, "pixel_values": batch["pixel_values"].double()}


def test_the_loss_is_the_models_own_mean_over_pixels_with_a_class(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch = doubled(batch_of(task, tmp_path))
    model = model_of(task, base).double()
    total, count = task.loss(model, batch)
    own = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    assert count == (batch["labels"] != NO_CLASS).sum() < batch["labels"].numel()
    torch.testing.assert_close(total / count, own.loss, rtol=1e-12, atol=0)
    larger = torch.nn.functional.interpolate(own.logits, size=batch["labels"].shape[-2:], mode="bilinear")
    byhand = torch.nn.functional.cross_entropy(larger, batch["labels"], ignore_index=255)
    torch.testing.assert_close(total / count, byhand, rtol=1e-12, atol=0)


def test_pixels_without_a_class_have_no_part_in_the_loss(base: Path, tmp_path: Path) -> None:
    task = task_of(base, task={"labels": NAMES})
    batch = doubled(batch_of(task, tmp_path))
    model = model_of(task, base).double()
    everywhere = {**batch, "labels": torch.full_like(batch["labels"], NO_CLASS)}
    total, count = task.loss(model, everywhere)
    assert (float(total.detach()), int(count)) == (0.0, 0)
    total.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert all(bool(gradient.isfinite().all()) and not gradient.any() for gradient in gradients)


def test_a_batch_is_what_segformers_processor_makes_of_pictures_and_masks(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    batch = batch_of(task, tmp_path)
    images = [PIL.Image.open(tmp_path / "some" / f"{at}.png") for at in range(3)]
    masks = [PIL.Image.open(tmp_path / "some" / f"{at}-mask.png") for at in range(3)]
    wanted = task.processor(images, masks, return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], wanted["pixel_values"], rtol=0, atol=0)
    torch.testing.assert_close(batch["labels"], wanted["labels"], rtol=0, atol=0)
    assert batch["sizes"] == [(40, 48)] * 3


def beit() -> tuple[Any, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = BeitConfig(
        **sizes, image_size=32, patch_size=4, out_indices=[1, 2, 3, 4], pool_scales=[1, 2],
        auxiliary_channels=16, num_labels=5,
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    return BeitForSemanticSegmentation(config), BeitImageProcessorPil(size=size, crop_size=size)


def dpt() -> tuple[Any, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = DPTConfig(
        **sizes, image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_labels=5,
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    return DPTForSemanticSegmentation(config), DPTImageProcessorPil(size=size, keep_aspect_ratio=True)


def test_an_auxiliary_head_has_its_part_in_the_loss(tmp_path: Path) -> None:
    model, processor = beit()
    model.save_pretrained(tmp_path / "beit")
    processor.save_pretrained(tmp_path / "beit")
    task = task_of(tmp_path / "beit")
    batch = batch_of(task, tmp_path)
    total, count = task.loss(model.eval(), batch)
    own = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    torch.testing.assert_close(total / count, own.loss)
    larger = torch.nn.functional.interpolate(own.logits, size=(32, 32), mode="bilinear")
    main = torch.nn.functional.cross_entropy(larger, batch["labels"], ignore_index=255)
    assert bool(own.loss > main * 1.2)


@pytest.mark.parametrize(("kind", "heads"), [("segformer", 1), ("beit", 3), ("dpt", 3)])
def test_an_adapter_is_one_of_peft_with_the_same_outputs(
    kind: str, heads: int, base: Path, tmp_path: Path
) -> None:
    if kind != "segformer":
        torch.manual_seed(0)
        model, processor = {"beit": beit, "dpt": dpt}[kind]()
        model.save_pretrained(tmp_path / "base")
        processor.save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    task = task_of(base, task={"labels": NAMES})
    batch = batch_of(task, tmp_path)
    loaded = task.load_model(resolve_base(str(base), say=lambda _: None))
    whole = task.heads(loaded)
    assert len(whole) == heads
    model = get_peft_model(
        model_of(task, base), LoraConfig(r=2, target_modules="all-linear", modules_to_save=whole)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(model_of(task, base), tmp_path / "adapter").eval()
    inputs = {"pixel_values": batch["pixel_values"]}
    torch.testing.assert_close(model.eval()(**inputs).logits, theirs(**inputs).logits)


# Metrics.


def test_metrics_are_those_of_all_pixels_at_the_pictures_size(base: Path, tmp_path: Path) -> None:
    task = task_of(base, task={"labels": [*NAMES, "never there"]})
    model = model_of(task, base)
    rows = [row for (row,) in task.encode(examples(tmp_path, count=5))]
    records: list[Any] = []
    true, found = [], []
    for some in (rows[:2], rows[2:]):
        batch = task.collate(some)
        with torch.no_grad():
            records += task.metrics(model, batch).records
            logits = model(pixel_values=batch["pixel_values"]).logits
        larger = torch.nn.functional.interpolate(logits, size=(40, 48), mode="bilinear")
        found.append(larger.argmax(1).numpy().ravel())
        true.append(np.stack(batch["masks"]).ravel())
    seen, said = np.concatenate(true), np.concatenate(found)
    seen, said = seen[seen != NO_CLASS], said[seen != NO_CLASS]
    scores = task.score(records)
    there = np.union1d(seen, said)
    wanted = jaccard_score(seen, said, labels=there, average="macro", zero_division=0)
    assert scores["mean_iou"] == pytest.approx(wanted, abs=1e-6)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(seen, said), abs=1e-6)
    assert task.score(records) == scores


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_the_likeliest_class_is_transformers_own(classes: int, seed: int) -> None:
    logits = torch.randn(1, classes, 7, 9, generator=torch.Generator().manual_seed(seed))

    class Outputs:
        pass

    outputs = Outputs()
    outputs.logits = logits
    (wanted,) = SegformerImageProcessorPil().post_process_semantic_segmentation(outputs, [(20, 31)])
    assert torch.equal(likeliest(logits[0], (20, 31)), wanted)


# Classes.


def test_classes_are_the_recipes_else_the_bases_else_the_masks(base: Path, tmp_path: Path) -> None:
    named = task_of(base, task={"labels": NAMES})
    assert named.labels.names == NAMES
    counted = task_of(base)
    counted.encode(examples(tmp_path))
    counted.settle()
    assert counted.labels.names == ["0", "1", "2"]
    model = SegformerForSemanticSegmentation(
        SegformerConfig(**{**load_config(resolve_base(str(base))).to_dict(), "num_labels": 4})
    )
    model.config.id2label = {0: "wall", 1: "sky", 2: "tree", 3: "sky"}
    model.save_pretrained(tmp_path / "finished")
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "finished")
    brought = task_of(tmp_path / "finished")
    assert brought.labels.names == ["wall", "sky (1)", "tree", "sky (3)"]
    brought.encode(examples(tmp_path / "more"))
    assert "3 of the 4 classes stand in masks" in brought.notes()
    loaded = brought.load_model(resolve_base(str(tmp_path / "finished"), say=lambda _: None))
    assert not loaded.new
    assert brought.heads(loaded) == ["decode_head"]


def test_labels_of_a_base_that_does_not_segment_are_no_classes(tmp_path: Path) -> None:
    from transformers import SegformerForImageClassification

    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    SegformerForImageClassification(SegformerConfig(**sizes, num_labels=10)).save_pretrained(tmp_path)
    SegformerImageProcessorPil().save_pretrained(tmp_path)
    assert task_of(tmp_path).labels.names == []


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.full((8, 8), 3), {"labels": NAMES}, "has pixels of class 3, and there are 3 classes"),
        (np.full((8, 8), 255), {}, "has no pixel with a class"),
        (np.full((8, 8), 0), {"reduce_labels": True}, r"no pixel with a class \(0 and 255 are none\)"),
        (np.zeros((8, 9)), {}, "has 9 x 8 pixels, and its image 8 x 8"),
    ],
)
def test_a_mask_that_does_not_fit_is_named_with_its_row(
    mask: Any, options: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    for name, values in (("good", np.arange(64).reshape(8, 8) % 3), ("bad", mask)):
        PIL.Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"{name}.png")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    rows = [{"image": "image.png", "mask": f"{name}.png"} for name in ("good", "bad")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = task_of(base, task=options)
    with pytest.raises(DataError, match=message) as caught:
        prepare(
            recipe_of(data={"train": {"path": str(path)}}).data,
            encoder=task.encoder(), seed=0, model_max_length=None,
        )  # fmt: skip
    assert "2" in str(caught.value.where)
    assert "bad.png" in caught.value.message


def test_masks_of_one_class_or_of_no_known_one_are_refused(base: Path, tmp_path: Path) -> None:
    task = task_of(base)
    with pytest.raises(RecipeError, match=r"task\.labels: name the classes"):
        task.settle()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    values = np.array([[0, 255]] * 4).repeat(4, axis=1).repeat(2, axis=0)
    PIL.Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
    (image, mask) = (picture(str(tmp_path / f"{name}.png"), name) for name in ("image", "mask"))
    task.encode([Segmented(image, mask)])
    with pytest.raises(DataError, match=r"same class only.*255 is none"):
        task.settle()


def test_reduced_labels_are_transformers_own(base: Path, tmp_path: Path) -> None:
    task = task_of(base, task={"reduce_labels": True})
    batch = batch_of(task, tmp_path)
    masks = [PIL.Image.open(tmp_path / "some" / f"{at}-mask.png") for at in range(3)]
    images = [PIL.Image.open(tmp_path / "some" / f"{at}.png") for at in range(3)]
    processor = SegformerImageProcessorPil(size={"height": 32, "width": 32}, do_reduce_labels=True)
    wanted = processor(images, masks, return_tensors="pt")["labels"]
    torch.testing.assert_close(batch["labels"], wanted, rtol=0, atol=0)
    assert task.labels.names == ["1", "2"]


def test_what_the_bases_processor_would_do_to_masks_is_undone_and_said(tmp_path: Path) -> None:
    model, _ = beit()
    model.save_pretrained(tmp_path)
    BeitImageProcessorPil(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True,
        do_reduce_labels=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    task = task_of(tmp_path, task={"labels": NAMES})
    batch = batch_of(task, tmp_path / "more")
    assert batch["pixel_values"].shape[-2:] == (32, 32)
    assert batch["labels"].unique().tolist() == [0, 1, 2, 255]
    said = " ".join(task.notes())
    assert "whole pictures are resized to 32 x 32" in said
    assert "task.reduce_labels" in said
    task.save(tmp_path / "more")
    again = SemanticSegmentation.load_processor(resolve_base(str(tmp_path)), say=lambda _: None)
    assert again.do_center_crop  # the base's own stays
    assert not BeitImageProcessorPil.from_pretrained(tmp_path / "more").do_center_crop


def test_bases_and_settings_without_a_meaning_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="label_smoothing_factor"):
        task_of(base, training={"label_smoothing_factor": 0.1})
    vit = tiny_base_for("IMAGE_CLS", tmp_path)
    with pytest.raises(ModelError, match="is a vit, which Transformers has no model of for SEMANTIC_SEG"):
        task_of(vit)


# Masks as files.


@pytest.mark.parametrize("classes", [2, 21, 254, 255, 300])
def test_a_mask_that_is_written_is_read_as_it_was(classes: int) -> None:
    numbers = np.random.default_rng(0).integers(0, classes, (20, 30))
    numbers[numbers == NO_CLASS] = 0
    written = picture({"bytes": png(numbers, classes), "path": "a.png"}, "mask")
    np.testing.assert_array_equal(written.numbers(), numbers)


def test_the_nearest_pixel_is_taken_and_none_is_mixed() -> None:
    _, mask = scene(np.random.default_rng(0), 50, 70)
    assert np.unique(nearest(mask, (13, 17))).tolist() == np.unique(mask).tolist()
    np.testing.assert_array_equal(nearest(mask, (100, 140)), mask.repeat(2, 0).repeat(2, 1))


def test_answers_of_pictures_with_one_name_are_written_side_by_side(base: Path, tmp_path: Path) -> None:
    task = task_of(base, task={"labels": NAMES})
    record = (png(np.zeros((2, 2)), 3), {"ground": 1.0})
    names = ["a/1.jpg", "b/1.png", "the row's bytes", "../..", "c/1.jpeg"]
    found = [
        task.answer([{"image": picture({"bytes": b"", "path": name}, "image")}], [record], tmp_path)["mask"]
        for name in names
    ]
    assert found == ["1.png", "1-2.png", "the-row-s-bytes.png", "mask.png", "1-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(found)
