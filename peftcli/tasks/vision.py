"""What the tasks share that look at pictures: the base's image processor, batches of what it makes, and what is said.

Shapes: B rows, C channels, H rows of W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.data.pictures import Look, Picture, at_once
from peftcli.errors import ModelError
from peftcli.hub import first_line
from peftcli.models.load import Base, Loaded, load_config, load_processor
from peftcli.recipe.schema import Recipe
from peftcli.tasks.base import Task
from peftcli.tasks.heads import head_modules, outer_weights
from peftcli.tasks.unwrapped import evaluating, unwrapped

# Pillow's modes by a base's channels.
_MODES = {1: "L", 3: "RGB"}
# What models raise over inputs that are not for them.
_REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError)


def load_image_processor(
    base: Base, mapping: Any, task_type: str, such_as: str, *, trust_remote_code: bool
) -> Any:
    """The base's image processor, of the kind that this machine can run.

    Args:
        base: the base, or an adapter's folder.
        mapping: Transformers' table of the task's models, by config.
        task_type: the task's name.
        such_as: a base that is for the task.
        trust_remote_code: run code that the base brings.

    Raises:
        ModelError: there is none, or the base is of an architecture that the task has no model for.
        HubError: the Hub could not be reached.
    """
    from transformers import AutoImageProcessor

    # An adapter's folder holds the processor alone, of a base that was asked before.
    if not (Path(base.path) / "adapter_config.json").is_file():
        config = load_config(base, trust_remote_code=trust_remote_code)
        if type(config) not in mapping and not getattr(config, "auto_map", None):
            raise ModelError(
                f"base_model {base.name!r} is a {config.model_type}, which Transformers has no model of for "
                f"{task_type}; name another, such as {such_as}"
            )
    return load_processor(base, AutoImageProcessor, trust_remote_code=trust_remote_code)


def see_whole(processor: Any, *, reduces: bool) -> list[str]:
    """Lets a processor make pictures of one size without cutting, padding or renumbering, and says what it did else.

    So what a model says of a pixel lies on the picture's own. The processor is changed, and saved so.

    Args:
        processor: the base's.
        reduces: whether the recipe says that masks count classes from 1.
    """
    said = []
    if getattr(processor, "do_center_crop", None):
        size = processor.crop_size
        processor.size = {"height": size["height"], "width": size["width"]}
        processor.do_center_crop = False
        said.append(
            f"whole pictures are resized to {size['width']} x {size['height']}, where the base's were cropped"
        )
    for name, what in (("do_pad", "padded"), ("keep_aspect_ratio", "resized in their own proportions")):
        if getattr(processor, name, None):
            setattr(processor, name, False)
            said.append(f"pictures are not {what}, as the base's were ({name})")
    if getattr(processor, "do_reduce_labels", None):
        processor.do_reduce_labels = False
        if not reduces:
            said.append(
                "the base's masks counted classes from 1; in these 0 is one (else: task.reduce_labels)"
            )
    return said


class Pictures:
    """Pictures on their way to a model.

    Args:
        processor: the base's.
        config: the base's Transformers config.
        **settings: of the processor's call.

    Raises:
        ModelError: the base takes other pictures than gray and coloured ones.
    """

    def __init__(self, processor: Any, config: Any, **settings: Any) -> None:
        seen: list[Any] = [config, getattr(config, "vision_config", None)]
        channels = next((each.num_channels for each in seen if getattr(each, "num_channels", None)), 3)
        if channels not in _MODES:
            raise ModelError(f"the base takes pictures of {channels} channels; those of 1 and 3 can be read")
        self.mode = _MODES[channels]
        self._processor = processor
        self._settings = settings
        self._modes: Counter[str] = Counter()
        self._moving = self._turned = 0

    def note(self, look: Look) -> None:
        """Counts what is done to a picture."""
        self._modes[look.mode] += look.mode != self.mode
        self._moving += look.frames > 1
        self._turned += look.turned

    def notes(self) -> list[str]:
        """What is done to pictures."""
        found = []
        if others := {mode: count for mode, count in self._modes.items() if count}:
            listed = ", ".join(f"{count:,} {mode}" for mode, count in sorted(others.items()))
            found.append(f"{_pictures(sum(others.values()))} made {self.mode}: {listed}")
        if self._turned:
            found.append(f"{_pictures(self._turned)} turned upright, as EXIF says")
        if self._moving:
            found.append(f"{_pictures(self._moving)} of several frames: the first is used")
        return found

    def inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """A batch of what the processor makes of each: `pixel_values` (B, C, H, W), mostly.

        Raises:
            DataError: a picture cannot be read any more.
            ModelError: they come out in several sizes.
        """
        made = at_once(lambda picture: self._made(picture.pixels(self.mode)), pictures)
        for name in made[0]:
            sizes = sorted({tuple(each[name].shape) for each in made})
            if len(sizes) > 1:
                some = " and ".join(" x ".join(map(str, size)) for size in sizes[:2])
                raise ModelError(
                    f"the base's image processor leaves pictures in several sizes, such as {some}, which cannot stand "
                    f"in a batch; give it one `size` of height and width in preprocessor_config.json"
                )
        return {name: torch.stack([each[name] for each in made]) for name in made[0]}

    def area(self) -> int:
        """The pixels of what is made of a picture."""
        made = next(iter(self._blank().values()))
        return int(made.shape[-1] * made.shape[-2])

    def _blank(self) -> dict[str, Tensor]:
        """What is made of a picture with nothing on it."""
        import PIL.Image

        return self._made(PIL.Image.new(self.mode, (48, 32)))

    def _made(self, image: Any) -> dict[str, Tensor]:
        made = self._processor(image, return_tensors="pt", **self._settings)
        return {name: value[0] for name, value in made.items() if isinstance(value, Tensor)}

    def check(self, model: nn.Module) -> None:
        """Refuses a base that does not take what the processor makes, by trying it.

        Raises:
            ModelError: always then.
        """
        base: Any = unwrapped(model)
        batch = {name: value[None].to(base.device) for name, value in self._blank().items()}
        try:
            with evaluating(base):
                base(**as_inputs(base, batch))
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            shapes = ", ".join(f"{name} of {tuple(value.shape[1:])}" for name, value in batch.items())
            raise ModelError(
                f"the base, with its adapter, does not run on what its image processor makes ({shapes}): "
                f"{first_line(error)}"
            ) from error


class OfPictures(Task):
    """What tasks of pictures share; `_pictures` makes inputs of them."""

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        self._pictures = Pictures(processor, config)

    def heads(self, loaded: Loaded) -> list[str]:
        """All beside the body: a head that the base brings may be for others, of the same number."""
        return head_modules(loaded.model, outer_weights(loaded.model))

    def max_input(self) -> int | None:
        """None: a picture has no tokens."""
        return None

    def check_model(self, model: nn.Module) -> None:
        """Refuses a base that does not take what its image processor makes."""
        self._pictures.check(model)


def as_inputs(model: nn.Module, batch: Mapping[str, Any], beside: Sequence[str] = ()) -> dict[str, Any]:
    """Of a batch what the model takes, numbers with a point in the base's type; `beside` is for others."""
    base: Any = unwrapped(model)
    return {
        name: value.to(base.dtype) if value.is_floating_point() else value
        for name, value in batch.items()
        if name not in beside and isinstance(value, Tensor)
    }


def _pictures(count: int) -> str:
    return f"{count:,} picture" + "s" * (count != 1)
