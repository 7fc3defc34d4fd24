"""TEXT_TO_IMAGE: pictures of a subject, which Stable Diffusion learns to draw by a prompt (DreamBooth).

The UNet is told a picture's latents with noise at some timestep, and what is trained is what it says of the noise: the
noise itself, or the velocity (Ho et al. 2020, arXiv:2006.11239; Salimans and Ho 2022, arXiv:2202.00512). With prior
preservation each row has a class image beside it (Ruiz et al. 2023, arXiv:2208.12242). Names and meaning of options
are those of diffusers' train_dreambooth_lora.py. Shapes: B rows, S pixels a side, C channels and s places a side of
latents, T tokens of a prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn import functional as F

from peftcli.data.example import Captioned, Example, Limit, Row
from peftcli.data.pictures import look_at
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.models.diffusion import (
    Denoiser,
    load_denoiser,
    load_pipeline_config,
    load_prompt_tokenizer,
    pipeline,
    require_diffusers,
)
from peftcli.models.load import Base, Loaded
from peftcli.peft.diffusers_lora import write_diffusers_lora
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import TextToImageOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Say, Sum, Task
from peftcli.tasks.prior import ClassImages, pixels
from peftcli.tasks.unwrapped import evaluating, unwrapped

_UNET_TARGETS = ["to_k", "to_out.0", "to_q", "to_v"]
_TEXT_TARGETS = ["k_proj", "out_proj", "q_proj", "v_proj"]
# An evaluation looks at each row with so many timesteps, evenly spread, and noise that is always the same.
_LOOKS = 8


class TextToImage(Task):
    """The task of drawing pictures by a prompt."""

    task_type: ClassVar[str] = "TEXT_TO_IMAGE"
    pipeline_tag: ClassVar[str | None] = "text-to-image"
    library: ClassVar[str] = "diffusers"
    usage: ClassVar[str] = 'peftcli generate --adapter . --prompt "PROMPT" --output picture.png'
    unmergeable: ClassVar[str] = "diffusers puts it into a pipeline: pipe.load_lora_weights, pipe.fuse_lora"

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, TextToImageOptions)
        self.options = options
        self.resolution: int = options.resolution or config.resolution
        if self.resolution % config.scale:
            raise RecipeError(
                f"task.resolution: must be a multiple of {config.scale}, as the base's latents are"
            )
        self._prior = ClassImages(options, recipe.training.seed) if options.with_prior_preservation else None
        self._prior_note = ""
        self._without_text = 0
        self._largest = -1
        self._noise = self._scheduler()

    def _scheduler(self) -> Any:
        """How noise is added in training: always as DDPM does, whatever the base draws with."""
        from diffusers import DDPMScheduler

        try:
            return DDPMScheduler.from_config(dict(self.config.scheduler))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"the base's scheduler cannot be made: {error}") from error

    # The model.

    @staticmethod
    def auto_class() -> Any:
        """Diffusers' pipeline."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    @staticmethod
    def load_config(base: Base, *, trust_remote_code: bool = False) -> Any:
        """What the pipeline's configs say."""
        del trust_remote_code
        require_diffusers()
        return load_pipeline_config(base)

    @staticmethod
    def load_processor(base: Base, *, trust_remote_code: bool = False, say: Say) -> Any:
        """The pipeline's CLIP tokenizer."""
        del trust_remote_code, say
        return load_prompt_tokenizer(base)

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any:
        """Not done: of three models in one each has its own sizes.

        Raises:
            ModelError: always.
        """
        del config, options
        raise ModelError("a diffusion pipeline cannot be built in small, or without its weights")

    def load_model(self, base: Base) -> Loaded:
        """The UNet with what it needs beside it."""
        trains_text = self.options.train_text_encoder
        return Loaded(load_denoiser(base, self.config, dtype=self.recipe.dtype, trains_text=trains_text))

    def heads(self, loaded: Loaded) -> list[str]:
        """None: all weights are the base's."""
        del loaded
        return []

    def adapter_config(self) -> Any:
        """The attention of the UNet where the recipe names no layers, and that of the text encoder if it is trained."""
        config = super().adapter_config()
        targets = _UNET_TARGETS if config.target_modules is None else config.target_modules
        if self.options.train_text_encoder and not isinstance(targets, str):
            targets = sorted({*targets, *_TEXT_TARGETS})
        return replace(config, target_modules=targets)

    def check_model(self, model: nn.Module) -> None:
        """Refuses a tokenizer that is not the base's, and layers that cannot be saved for diffusers.

        Raises:
            ModelError: the tokenizer has more tokens than the text encoder.
            RecipeError: naming the setting.
        """
        base = _denoiser(model)
        size = int(self.config.text["vocab_size"])
        if self._largest >= size:
            raise ModelError(
                f"the tokenizer gives token {self._largest}, and the text encoder knows {size}: they do not belong "
                "together"
            )
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        adapted = [name for name in trained if ".lora_" in name]
        if any(".lora_embedding_" in name for name in adapted):
            raise RecipeError(
                "adapter.target_modules: names embeddings, for which diffusers' file of LoRA weights has no place"
            )
        if adapted and base.trains_text and not any("text_encoder." in name for name in adapted):
            raise RecipeError(
                "task.train_text_encoder: adapter.target_modules names none of its layers; name them, or leave it out"
            )

    @contextmanager
    def readied(self, model: nn.Module, like: nn.Module | None = None) -> Iterator[None]:
        """With all class images: the base draws those that are missing."""
        del like
        if self._prior is not None:
            base = _denoiser(model)
            drawn = model.disable_adapter()  # type: ignore[operator]
            with evaluating(model), PartialState().main_process_first(), drawn:
                self._prior.complete(pipeline(base, self.processor), self.resolution)
        yield

    # Rows.

    def max_input(self) -> int | None:
        """None: the prompt has a limit of its own."""
        return None

    def _longest(self) -> int:
        """How many tokens a prompt may have, those around it included."""
        return min(int(self.config.text["max_position_embeddings"]), int(self.processor.model_max_length))

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `image`, not read yet, and `prompt` (T,), int32."""
        rows: list[Row] = []
        for example in examples:
            assert isinstance(example, Captioned)
            text = example.text
            if text is None:
                text = self.options.instance_prompt
                self._without_text += 1
            if text is None:
                raise DataError("has no text; give it one, or set task.instance_prompt for all rows")
            rows.append({"image": example.image, "prompt": self._tokens(text)})
        look_at([row["image"] for row in rows])
        return [[row] for row in rows]

    def _tokens(self, text: str) -> Any:
        ids = np.asarray(self.processor(text, truncation=False, verbose=False)["input_ids"], dtype=np.int32)
        self._largest = max(self._largest, int(ids.max()))
        return ids

    def settle(self) -> None:
        """Looks at the class images, and their prompt."""
        if self._prior is not None:
            self._class_tokens()
            self._prior_note = self._prior.note()

    def _class_tokens(self) -> Any:
        tokens = self._tokens(self.options.class_prompt or "")
        if len(tokens) > self._longest():
            raise RecipeError(
                f"task.class_prompt: has {len(tokens)} tokens, and the text encoder takes {self._longest()}; shorten it"
            )
        return tokens

    def limits(self) -> tuple[Limit, ...]:
        """That of the text encoder."""
        setting, advice = "the text encoder's", "shorten the prompt"
        return (Limit("prompt", "prompt", self._longest(), setting, self._cut, advice=advice),)

    def _cut(self, row: Row, limit: int) -> Row:
        """The token that ends a prompt stays."""
        return {**row, "prompt": np.concatenate([row["prompt"][: limit - 1], row["prompt"][-1:]])}

    def notes(self) -> list[str]:
        """The size of pictures, whose prompt is the recipe's, and class images."""
        found = [f"pictures of {self.resolution} x {self.resolution} pixels, cut from the middle"]
        if self._without_text:
            found.append(f"{self._without_text:,} rows have no text: {self.options.instance_prompt!r}")
        return [*found, *([self._prior_note] if self._prior_note else [])]

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`pixels` (B, 3, S, S) from -1 to 1, `input_ids` (B, T), and `seeds`, one a row, that its content decides.

        Raises:
            DataError: a picture cannot be read any more.
        """
        seen = pixels([row["image"] for row in rows], self.resolution)
        ids = self._padded([row["prompt"] for row in rows])
        parts = zip(seen, ids, strict=True)
        seeds = [zlib.crc32(one.numpy().tobytes() + other.numpy().tobytes()) for one, other in parts]
        return {"pixels": seen, "input_ids": ids, "seeds": seeds}

    def _padded(self, prompts: Sequence[Any]) -> Tensor:
        """(B, T): to the text encoder's whole length, as the base was trained."""
        ids = torch.full((len(prompts), self._longest()), self.processor.pad_token_id)
        for at, prompt in enumerate(prompts):
            ids[at, : len(prompt)] = torch.as_tensor(prompt)
        return ids

    # Training, evaluation.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the rows' mean squared errors, with those of their class images as they weigh; and the rows.

        Latents, noise and timesteps are drawn by PyTorch's generators. A model in evaluation mode gets the same ones
        at every call, and no class images.
        """
        del label_smoothing
        base = _denoiser(model)
        if not base.training:
            return self._looks(model, base, batch)
        seen, ids = batch["pixels"], batch["input_ids"]
        count = len(seen)
        if self._prior is not None:
            beside = self._prior.drawn(count, self.resolution).to(seen.device)
            prompt = self._padded([self._class_tokens()]).to(ids.device)
            seen, ids = torch.cat([seen, beside]), torch.cat([ids, prompt.expand(count, -1)])
        latents = base.latents(seen, draws=True)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(self.config.steps, (len(latents),), device=latents.device)
        errors = self._errors(model, latents, noise, timesteps, ids)
        total = errors[:count].sum() + self.options.prior_loss_weight * errors[count:].sum()
        return total, torch.full((), count, device=errors.device)

    def _errors(
        self, model: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor
    ) -> Tensor:
        """Each picture's mean squared error: (B,), in float32 or better."""
        noisy = self._noise.add_noise(latents, noise, timesteps)
        said: Tensor = model(noisy, timesteps, ids)
        is_velocity = self._noise.config.prediction_type == "v_prediction"
        true = self._noise.get_velocity(latents, noise, timesteps) if is_velocity else noise
        kind = torch.promote_types(said.dtype, torch.float32)
        return F.mse_loss(said.to(kind), true.to(kind), reduction="none").flatten(1).mean(1)

    def _looks(self, model: nn.Module, base: Denoiser, batch: Batch) -> Sum:
        """The sum of the rows' errors, each the mean over timesteps evenly spread, and the rows."""
        latents = base.latents(batch["pixels"], draws=False)
        total = torch.zeros((), device=latents.device)
        for look in range(_LOOKS):
            noise = torch.stack(
                [
                    torch.randn(
                        latents.shape[1:], generator=torch.Generator().manual_seed(seed * _LOOKS + look)
                    )
                    for seed in batch["seeds"]
                ]
            ).to(latents)
            at = (2 * look + 1) * self.config.steps // (2 * _LOOKS)
            timesteps = torch.full((len(latents),), at, device=latents.device)
            total = total + self._errors(model, latents, noise, timesteps, batch["input_ids"]).sum() / _LOOKS
        return total, torch.full((), len(latents), device=latents.device)

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss."""
        return Evaluated({"loss": self.loss(model, batch)})

    # Use.

    def draw(self, model: nn.Module, prompt: str, *, seed: int, **settings: Any) -> Any:
        """A picture, by diffusers' own pipeline.

        Args:
            model: with or without an adapter.
            prompt: what is to be seen.
            seed: of the noise that it is made from.
            **settings: of the pipeline's call: num_inference_steps, guidance_scale, negative_prompt.

        Raises:
            DataError: a prompt is longer than the text encoder takes.
        """
        for text in (prompt, settings.get("negative_prompt") or ""):
            if (length := len(self._tokens(text))) > self._longest():
                raise DataError(
                    f"the prompt has {length} tokens, and the text encoder takes {self._longest()}; shorten it"
                )
        pipe = pipeline(_denoiser(model), self.processor)
        side = {"height": self.resolution, "width": self.resolution}
        with torch.inference_mode():
            return pipe(prompt, generator=torch.Generator().manual_seed(seed), **side, **settings).images[0]

    def python_usage(self, base_id: str) -> str:
        """Diffusers' way."""
        prompt = self.options.instance_prompt or "PROMPT"
        return (
            "from diffusers import StableDiffusionPipeline\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base_id!r})\n"
            'pipe.load_lora_weights(".")\n'
            f"picture = pipe({prompt!r}).images[0]"
        )

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The adapter once more, as diffusers reads it."""
        write_diffusers_lora(folder)


def _denoiser(model: nn.Module) -> Denoiser:
    """The base inside whatever is around it."""
    base = unwrapped(model)
    assert isinstance(base, Denoiser)
    return base
