"""Laws of pictures: however one is stored it is the same one, and one that cannot be read is refused at once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from peftcli.data.pictures import Picture, look_at, picture
from peftcli.errors import DataError

HEIGHT, WIDTH = 12, 16


def pixels() -> Any:
    """(H, W, 3): a corner is red, so that sides can be told."""
    made = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    made[:4, :4] = (255, 0, 0)
    return made


def stored(kind: str, image: Any = None, **settings: Any) -> Picture:
    with io.BytesIO() as file:
        (PIL.Image.fromarray(pixels()) if image is None else image).save(file, kind, **settings)
        return picture({"bytes": file.getvalue(), "path": f"a.{kind.lower()}"}, "image")


def read(image: Picture) -> Any:
    return np.asarray(image.pixels("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "TGA"])
def test_a_picture_is_the_same_in_every_format(kind: str) -> None:
    np.testing.assert_array_equal(read(stored(kind)), pixels())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_and_nearly_so_where_the_format_blurs(kind: str) -> None:
    assert np.abs(read(stored(kind, quality=100)).astype(int) - pixels()).mean() < 3


def test_a_file_and_its_bytes_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(pixels()).save(path)
    for value in (str(path), {"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}):
        np.testing.assert_array_equal(read(picture(value, "image")), pixels())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_says_which_side_is_up(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = stored(kind, exif=exif)
    found = read(image)
    (look,) = look_at([image])
    assert look.size == found.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    assert look.turned == (orientation > 1)
    rows, columns = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    assert found[-2 if rows else 1, -2 if columns else 1, 1] < 60  # there is the red corner


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_any_mode_is_read_as_rgb(mode: str) -> None:
    gray = PIL.Image.new("L", (WIDTH, HEIGHT), 255)
    kind = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    found = read(stored(kind, gray.convert("RGB").convert(mode)))
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert found.min() >= 250


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    found = read(stored("PNG", PIL.Image.fromarray(values)))
    np.testing.assert_array_equal(found[..., 0], values >> 8)


def test_pixels_of_32_bits_have_no_known_range_and_are_refused() -> None:
    image = stored("TIFF", PIL.Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match="32 bits"):
        image.pixels("RGB")


def test_of_several_frames_the_first_is_read_and_their_number_known() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = stored("GIF", frames[0], save_all=True, append_images=frames[1:])
    assert look_at([image])[0].frames == 2
    assert read(image)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8])
def test_a_file_that_ends_too_early_is_found_at_the_first_look(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    whole = stored(kind, PIL.Image.fromarray(noise))
    assert isinstance(whole.data, bytes)
    part = Picture("image", "a.file", whole.data[: int(len(whole.data) * share)])
    with pytest.raises(DataError, match=r"image: a\.file (cannot be read|is no picture)"):
        look_at([whole, part])


def test_what_other_programs_would_be_started_for_is_no_picture() -> None:
    with pytest.raises(DataError, match="is no picture"):
        stored("EPS").look()


@pytest.mark.parametrize("times", [1.5, 3])
def test_what_pillow_takes_for_an_attack_is_refused(times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", int(HEIGHT * WIDTH / times))
    with pytest.raises(DataError, match="pixels, which Pillow takes for an attack"):
        look_at([stored("PNG")])


def test_values_of_other_kinds_are_refused() -> None:
    for value, said in ((None, "null"), ("", "empty"), (3, "int"), ({"array": []}, "dict")):
        with pytest.raises(DataError, match=f"it is {said}"):
            picture(value, "image")
    with pytest.raises(DataError, match="there is no file"):
        picture({"bytes": None, "path": "nowhere.png"}, "image")


# Masks.


def numbers() -> Any:
    return np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 7


def test_a_mask_is_its_numbers_whatever_its_colours() -> None:
    gray = PIL.Image.fromarray(numbers().astype(np.uint8))
    coloured = gray.copy()
    coloured.putpalette([255, 0, 0] * 256)
    wide = PIL.Image.fromarray(numbers().astype(np.uint16))
    for image in (gray, coloured, wide):
        np.testing.assert_array_equal(stored("PNG", image).numbers(), numbers())
    flags = PIL.Image.fromarray(numbers() > 3)
    np.testing.assert_array_equal(stored("PNG", flags).numbers(), numbers() > 3)


def test_colours_and_blurred_numbers_are_no_mask() -> None:
    with pytest.raises(DataError, match="a mask's are class numbers"):
        stored("PNG").numbers()
    with pytest.raises(DataError, match="is a JPEG, which blurs numbers"):
        stored("JPEG", PIL.Image.new("L", (4, 4))).numbers()


def test_the_hubs_columns_of_pictures_are_read(tmp_path: Path) -> None:
    import datasets

    from peftcli.data.hub import read_saved

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [PIL.Image.fromarray(pixels())] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found = list(read_saved(tmp_path / "saved", None))
    assert [row["label"] for row in found] == ["a", "b"]
    np.testing.assert_array_equal(read(picture(found[1]["image"], "image")), pixels())
