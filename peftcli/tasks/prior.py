"""Class images: what keeps a class from taking the look of the one instance of it that is trained.

Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", 2023,
arXiv:2208.12242. Shapes: B pictures, S pixels a side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftcli.data.pictures import Picture, at_once, look_at, picture
from peftcli.errors import RecipeError
from peftcli.files import write_bytes
from peftcli.recipe.tasks import TextToImageOptions

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def pixels(pictures: Sequence[Picture], side: int) -> Tensor:
    """(B, 3, S, S), from -1 to 1.

    Raises:
        DataError: a picture cannot be read any more.
    """
    read = np.stack(at_once(partial(Picture.square, side=side), pictures))
    return torch.from_numpy(read).permute(0, 3, 1, 2).float() / 127.5 - 1


class ClassImages:
    """A folder of pictures of the class, which the base fills up.

    Args:
        options: the task's, with prior preservation.
        seed: each picture that is drawn has its own, from this one on: drawn anew it is the same.
    """

    def __init__(self, options: TextToImageOptions, seed: int) -> None:
        self._options, self._seed = options, seed
        self.folder = Path(options.class_data_dir or "").expanduser()
        self._pictures: list[Picture] = []

    def note(self) -> str:
        """How many there are, and how many are to be drawn.

        Raises:
            RecipeError: what is named is no folder.
            DataError: a file in it is no picture.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RecipeError(f"task.class_data_dir: {self.folder} is no folder; name another")
        wanted, found = self._options.num_class_images, len(self._read())
        drawn = f"; the base will draw {wanted - found:,} more" if found < wanted else ""
        spare = f"; the first {wanted:,} are used" if found > wanted else ""
        return f"class images: {found:,} in {self.folder}{drawn}{spare}"

    def complete(self, pipe: Any, side: int) -> None:
        """Lets the base draw those that are missing, and looks at all.

        Args:
            pipe: diffusers' pipeline of the base.
            side: pixels.

        Raises:
            RecipeError: the folder cannot be written.
        """
        missing = self._missing()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(missing), self._options.sample_batch_size):
                self._draw(pipe, side, missing[start : start + self._options.sample_batch_size])
        except OSError as error:
            raise RecipeError(
                f"task.class_data_dir: {self.folder} cannot be written: {error.strerror or error}"
            ) from error
        self._pictures = self._read()[: self._options.num_class_images]

    def drawn(self, count: int, side: int) -> Tensor:
        """(B, 3, S, S): so many of them, by PyTorch's generator, whose state a checkpoint keeps."""
        chosen = torch.randint(len(self._pictures), (count,)).tolist()
        return pixels([self._pictures[at] for at in chosen], side)

    def _read(self) -> list[Picture]:
        if not self.folder.is_dir():
            return []
        files = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        found = [picture(str(path), "task.class_data_dir") for path in files]
        look_at(found)
        return found

    def _missing(self) -> list[int]:
        """The numbers of pictures to draw."""
        lacking = self._options.num_class_images - len(self._read())
        numbers = (at for at in range(10**6) if not self._path(at).exists())
        return [next(numbers) for _ in range(max(0, lacking))]

    def _path(self, number: int) -> Path:
        return self.folder / f"class-{number:04d}.png"

    def _draw(self, pipe: Any, side: int, numbers: Sequence[int]) -> None:
        generators = [torch.Generator().manual_seed(self._seed + number) for number in numbers]
        prompts = [self._options.class_prompt] * len(numbers)
        drawn = pipe(prompts, height=side, width=side, generator=generators).images
        for number, image in zip(numbers, drawn, strict=True):
            write_bytes(self._path(number), png(image))


def png(image: Any) -> bytes:
    """A Pillow image as a file."""
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return file.getvalue()
