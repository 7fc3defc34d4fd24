"""`peftcli generate` of an adapter that draws: a prompt in, a picture out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftcli.errors import DataError, MemoryLimitError
from peftcli.files import write_bytes
from peftcli.run.adapted import open_adapted
from peftcli.run.answers import PictureAnswer
from peftcli.tasks.prior import png

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Picture:
    """What was drawn, and where it is."""

    output: Path
    prompt: str
    seed: int
    width: int
    height: int

    def as_dict(self) -> PictureAnswer:
        """For `--json`."""
        return {
            "output": str(self.output),
            "prompt": self.prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
        }


def draw(
    folder: Path,
    prompt: str,
    output: Path,
    *,
    with_adapter: bool,
    seed: int | None,
    settings: Mapping[str, Any],
    say: Say,
) -> Picture:
    """Draws a picture and writes it: the whole file or nothing.

    Args:
        folder: the adapter's.
        prompt: what is to be seen.
        output: a .png file.
        with_adapter: False for the bare base.
        seed: of the noise; None for one that is drawn, and said.
        settings: of how it is drawn; what is None is left to the task.
        say: gets a line for what the user should know.

    Raises:
        PeftcliError: of the kind that says what went wrong.
    """
    adapted = open_adapted(folder, say)
    if seed is None:
        seed = int(torch.seed() % 2**32)
        say(f"seed {seed}")
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        with nullcontext() if with_adapter else adapted.model.disable_adapter():
            picture = adapted.task.draw(adapted.model, prompt, seed=seed, **given)
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError("drawing ran out of memory; train with a smaller task.resolution") from error
    try:
        write_bytes(output, png(picture))
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", where=str(output)) from error
    return Picture(output, prompt, seed, *picture.size)
