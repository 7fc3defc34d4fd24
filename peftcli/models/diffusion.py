"""Stable Diffusion as one module to adapt: its UNet and, if it is trained too, its text encoder.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv:2112.10752. Of a
pipeline's folder the UNet, the text encoder and the autoencoder are loaded, as the classes that are named here:
nothing that the folder brings can run. Shapes: B pictures, C channels of latents, S pixels a side, s = S / scale of
latents, T tokens, H the text encoder's width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError, RecipeError
from peftcli.models.load import Base, one_line_errors
from peftcli.models.pipeline import INDEX, kind_of, read_json
from peftcli.models.quiet import bars_on_terminals_only, no_advice_on_torchvision, no_load_report

KIND = "StableDiffusionPipeline"
_PREDICTED = ("epsilon", "v_prediction")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_BESIDE_TOKENIZERS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PARTS = {"unet": _WEIGHTS, "vae": _WEIGHTS, "text_encoder": "model.safetensors"}
_LOADING: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """What the configs of a pipeline's parts say.

    Attributes:
        unet: of the UNet.
        vae: of the autoencoder.
        text: of the text encoder.
        scheduler: of how noise is added and taken away.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def scale(self) -> int:
        """Pixels a side of one place in the latents."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def resolution(self) -> int:
        """Pixels a side of the pictures that the base was trained on."""
        return int(self.unet["sample_size"]) * self.scale

    @property
    def steps(self) -> int:
        """From a picture to nothing but noise."""
        return int(self.scheduler.get("num_train_timesteps", 1000))


class Denoiser(nn.Module):
    """What is adapted of a pipeline, and beside it what is only used.

    Parts that stay as they are, are no children of this module: no adapter finds them, and no optimizer. They go where
    it goes.

    Args:
        unet: the UNet.
        text_encoder: a CLIP text encoder.
        vae: the autoencoder.
        config: theirs.
        trains_text: whether the text encoder is adapted, too.
    """

    main_input_name = "latents"

    def __init__(
        self, unet: Any, text_encoder: Any, vae: Any, config: DiffusionConfig, *, trains_text: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.trains_text = trains_text
        self.unet = unet
        if trains_text:
            self.text_encoder = text_encoder
        used = (vae,) if trains_text else (vae, text_encoder)
        for module in used:
            module.requires_grad_(requires_grad=False).eval()
        # In a tuple, which PyTorch does not look into.
        self._used: tuple[Any, ...] = used

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self._used[0]

    @property
    def text(self) -> Any:
        """The text encoder, adapted or not."""
        return self.text_encoder if self.trains_text else self._used[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's weights."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        found: Tensor = next(self.unet.parameters())
        return found

    def forward(self, latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """What the UNet predicts of noisy latents (B, C, s, s) at timesteps (B,) with prompts (B, T): like latents."""
        found: Tensor = self.unet(latents, timesteps, self.prompts(input_ids), return_dict=False)[0]
        return found

    def prompts(self, input_ids: Tensor) -> Tensor:
        """(B, T, H)."""
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            found: Tensor = self.text(input_ids)[0]
        return found.to(self.dtype)

    @torch.no_grad()
    def latents(self, pixels: Tensor, *, draws: bool) -> Tensor:
        """(B, C, s, s) of pixels (B, 3, S, S) from -1 to 1: drawn from what the autoencoder says, or its mean."""
        spread = self.vae.encode(pixels.to(self.dtype)).latent_dist
        found: Tensor = spread.sample() if draws else spread.mode()
        return found * float(self.config.vae.get("scaling_factor", 0.18215))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for module in self._used:
            module._apply(fn, recurse)  # noqa: SLF001  (PyTorch's own way to go through modules)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # What training asks of a base.

    def activation_checkpointing_enable(
        self, options: Mapping[str, Any], *, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Recomputes each block's activations.

        Raises:
            ValueError: for another way to do it.
        """
        if every_n_layers != 1 or offload or options != {"use_reentrant": False}:
            raise ValueError("diffusers' own way takes no activation_checkpointing_kwargs")
        self.unet.enable_gradient_checkpointing()
        if self.trains_text:
            self.text_encoder.activation_checkpointing_enable(dict(options))

    def activation_checkpointing_disable(self) -> None:
        """Keeps them again."""
        self.unet.disable_gradient_checkpointing()
        if self.trains_text:
            self.text_encoder.activation_checkpointing_disable()

    def disable_input_require_grads(self) -> None:
        """Nothing was hooked: blocks that are computed anew need no gradient of what goes in."""


def load_pipeline_config(base: Base) -> DiffusionConfig:
    """What the configs in a pipeline's folder say; no weights are read.

    Raises:
        ModelError: it is no pipeline, or one that cannot be trained here.
        HubError: the Hub could not be reached.
    """
    folder = _folder(base, _CONFIGS.values())
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"base_model {base.name!r} has no {INDEX}; TEXT_TO_IMAGE needs the folder of a diffusers pipeline"
        )
    kind = kind_of(folder)
    if kind != KIND:
        raise ModelError(
            f"base_model {base.name!r} is a {kind}, and TEXT_TO_IMAGE trains {KIND} only (Stable Diffusion 1 and 2)"
        )
    config = DiffusionConfig(**{name: _read(folder / path) for name, path in _CONFIGS.items()})
    _check(config, base.name)
    return config


def _folder(base: Base, names: Iterable[str]) -> Path:
    """Where the pipeline's files are; of a Hub repository those of the names that it has are fetched."""
    if Path(base.path).is_dir() or base.revision is None:
        return Path(base.path)
    from huggingface_hub import errors, hf_hub_download

    found = ""
    with one_line_errors(base, "pipeline"), bars_on_terminals_only():
        for name in (INDEX, *names):
            try:
                found = hf_hub_download(base.path, name, revision=base.revision).removesuffix(name)
            except errors.LocalEntryNotFoundError:  # the Hub did not answer
                raise
            except errors.EntryNotFoundError:
                continue
    return Path(found)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError("does not hold a config", where=str(path))
    return content


def _check(config: DiffusionConfig, name: str) -> None:
    try:
        channels = (config.unet["in_channels"], config.unet["out_channels"], config.vae["latent_channels"])
        config.resolution  # noqa: B018  (what it is made of must be there)
        lacking = {"num_train_timesteps", "beta_schedule"} - config.scheduler.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the configs of {name!r} do not say what they must: {error}") from error
    if len({*channels}) != 1:
        raise ModelError(
            f"the UNet of {name!r} takes {channels[0]} channels and gives {channels[1]} of the autoencoder's "
            f"{channels[2]}: it is made for something else than text to image (inpainting, upscaling)"
        )
    if lacking:
        raise ModelError(f"the scheduler of {name!r} does not say {sorted(lacking)[0]}")
    predicted = config.scheduler.get("prediction_type", "epsilon")
    if predicted not in _PREDICTED:
        raise ModelError(
            f"the scheduler of {name!r} has prediction_type {predicted!r}; supported: {', '.join(_PREDICTED)}"
        )


def load_prompt_tokenizer(base: Base) -> Any:
    """The CLIP tokenizer of a pipeline.

    Raises:
        ModelError: there is none that can be loaded.
        HubError: the Hub could not be reached.
    """
    from transformers import CLIPTokenizer

    folder = (
        _folder(base, (f"tokenizer/{name}" for name in (*_TOKENIZERS, *_BESIDE_TOKENIZERS))) / "tokenizer"
    )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{base.name!r} has no tokenizer: there is no {folder / _TOKENIZERS[0]}")
    with one_line_errors(base, "tokenizer"):
        return CLIPTokenizer.from_pretrained(str(folder))


def load_denoiser(base: Base, config: DiffusionConfig, *, dtype: str, trains_text: bool) -> Denoiser:
    """The pipeline's UNet, text encoder and autoencoder with their weights, in evaluation mode.

    Args:
        base: the pipeline's folder.
        config: theirs, as `load_pipeline_config` gave it.
        dtype: `auto` (the type that the UNet is stored in), `float32`, `bfloat16` or `float16`.
        trains_text: whether the text encoder is to be adapted, too.

    Raises:
        ModelError: they cannot be loaded, or lack weights.
        HubError: the Hub could not be reached.
        MemoryLimitError: they do not fit into memory.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = _folder(base, (*_CONFIGS.values(), *(f"{name}/{file}" for name, file in _PARTS.items())))
    stored = {name: _stored_dtype(folder / name, base.name) for name in _PARTS}
    kind = stored["unet"] if dtype == "auto" else getattr(torch, dtype)
    with one_line_errors(base, "model"), bars_on_terminals_only(), no_load_report(), _quietly():
        unet, vae, text = (
            _whole(base, name, part.from_pretrained(str(folder / name), **_LOADING, **{argument: kind}))
            for name, part, argument in (
                ("unet", UNet2DConditionModel, "torch_dtype"),
                ("vae", AutoencoderKL, "torch_dtype"),
                ("text_encoder", CLIPTextModel, "dtype"),
            )
        )
    return Denoiser(unet, text, vae, config, trains_text=trains_text).eval()


def _whole(base: Base, name: str, loaded: tuple[Any, Mapping[str, Any]]) -> Any:
    """A model all of whose weights were there."""
    model, report = loaded
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ModelError(
            f"the {name} of {base.name!r} lacks {len(lacking)} weights (first: {lacking[0]}); get it again"
        )
    return model


def _stored_dtype(folder: Path, name: str) -> torch.dtype:
    """The type of most weights that are stored in the folder of one of the parts.

    Raises:
        ModelError: there are none, or only in pickles.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f": {pickles[0]} is a pickle, which can run code when read; convert it" if pickles else ""
        raise ModelError(f"{name!r} has no .safetensors file in {folder.name}{hint}")
    try:
        with safe_open(files[0], "pt") as file:
            return cast("torch.dtype", file.get_tensor(next(iter(file.keys()))).dtype)
    except (SafetensorError, OSError, StopIteration) as error:
        raise ModelError(f"is damaged or no safetensors file ({error})", where=str(files[0])) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what diffusers remarks on its own use of Transformers, about which nobody here can do anything."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.set_verbosity(before)


def pipeline(model: Denoiser, tokenizer: Any) -> Any:
    """Diffusers' own pipeline of the model's parts, adapted as they are; without a safety checker.

    Args:
        model: the base, with or without adapters in it.
        tokenizer: as `load_prompt_tokenizer` gave it.
    """
    import sys

    import diffusers

    try:
        scheduler_class = getattr(diffusers, str(model.config.scheduler.get("_class_name", "PNDMScheduler")))
        scheduler = scheduler_class.from_config(dict(model.config.scheduler))
    except (AttributeError, ValueError, TypeError) as error:
        raise ModelError(f"the base's scheduler cannot be made: {error}") from error
    with _quietly(), no_advice_on_torchvision():
        made = diffusers.StableDiffusionPipeline(
            vae=model.vae,
            text_encoder=model.text,
            tokenizer=tokenizer,
            unet=model.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    made.set_progress_bar_config(disable=not sys.stderr.isatty())
    return made


def require_diffusers() -> None:
    """Refuses to go on without the extra.

    Raises:
        RecipeError: a package of it is missing.
    """
    import importlib.util

    for module, package in (("diffusers", "diffusers"), ("PIL", "pillow")):
        if importlib.util.find_spec(module) is None:
            raise RecipeError(f"{package} is not installed; run `pip install 'peftcli[diffusion]'`")
