"""The model made ready to train, and put back afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.prompted import PromptedModel
from peftcli.errors import RecipeError, did_you_mean
from peftcli.recipe.training import Training
from peftcli.train.batch_norms import kept_batch_norms
from peftcli.train.lean import lean_modules


@dataclass(frozen=True)
class TrainedModel:
    """One model, three views: itself, over several processes (None with one), and what a step calls."""

    plain: nn.Module
    distributed: DistributedDataParallel | None
    stepped: nn.Module

    @property
    def tuner(self) -> AdaptedModel | PromptedModel | None:
        """The adapters' engine, whose method may have a part in training; None for a model without one."""
        inside = getattr(self.plain, "tuner", None)
        return inside if isinstance(inside, AdaptedModel | PromptedModel) else None


@contextmanager
def trained_model(model: nn.Module, accelerator: Accelerator, settings: Training) -> Iterator[TrainedModel]:
    """Places, checkpoints, wraps and compiles the model as the recipe says; its hooks are gone at the end.

    Raises:
        RecipeError: for a setting that this model cannot follow.
    """
    base = base_of(model)
    # Moving what is in its place already would still make every weight anew, and a plan's have nothing to be made of.
    away = any(weight.device != accelerator.device for weight in (*model.parameters(), *model.buffers()))
    if away and not _is_placed(base):
        model.to(accelerator.device)
    with ExitStack() as stack:
        if settings.fp16:
            _widen(model)
        stack.enter_context(_activation_checkpointing(base, settings, accelerator))
        stack.enter_context(_noisy_embeddings(base, settings.neftune_noise_alpha))
        stack.enter_context(_training_mode(model))
        stack.enter_context(kept_batch_norms(model))
        if not settings.compiles:  # a compiler does such things itself
            stack.enter_context(lean_modules(base))
        distributed = _distributed(model, accelerator)
        yield TrainedModel(model, distributed, _compiled(distributed or model, settings))


def _widen(model: nn.Module) -> None:
    """Trained weights of half precision (heads and biases of a float16 base) become float32: loss scaling needs it."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()


def base_of(model: Any) -> Any:
    """The Transformers model under an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_placed(base: nn.Module) -> bool:
    """Quantized models and those over several devices stand where they were loaded, and refuse to move."""
    return bool(getattr(base, "is_quantized", False)) or hasattr(base, "hf_device_map")


def _distributed(model: nn.Module, accelerator: Accelerator) -> DistributedDataParallel | None:
    if not accelerator.use_distributed:
        return None
    # A GPU's process owns one device; on the CPU PyTorch wants no list.
    devices = [accelerator.local_process_index] if accelerator.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, **accelerator.ddp_handler.to_kwargs())


def _compiled(model: nn.Module, settings: Training) -> nn.Module:
    if not settings.compiles:
        return model
    backend, mode = settings.torch_compile_backend, settings.torch_compile_mode
    backends = torch.compiler.list_backends(exclude_tags=())
    if backend is not None and backend not in backends:
        raise RecipeError(
            f"training.torch_compile_backend: unknown {backend!r}; {did_you_mean(backend, backends)}"
        )
    try:
        compiled: Any = torch.compile(model, backend=backend or "inductor", mode=mode)
    except (RuntimeError, ValueError) as problem:
        raise RecipeError(f"training.torch_compile_mode: {problem}") from problem
    return cast("nn.Module", compiled)


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def _activation_checkpointing(base: Any, settings: Training, accelerator: Accelerator) -> Iterator[None]:
    """Recomputes activations in the backward pass; frozen layers pass gradients on to them."""
    wanted = settings.activation_checkpointing
    wanted = settings.gradient_checkpointing if wanted is None else wanted
    options = settings.activation_checkpointing_kwargs or settings.gradient_checkpointing_kwargs
    if not wanted:
        if options:
            raise RecipeError(
                "training.activation_checkpointing_kwargs do nothing without activation_checkpointing"
            )
        yield
        return
    options = {"use_reentrant": False, **(options or {})}
    layers, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    if offload and accelerator.device.type == "cpu":
        raise RecipeError(
            "training.activation_checkpointing_kwargs: offload moves activations from an accelerator to the CPU, and "
            "there is no accelerator; leave it out"
        )
    hooked = bool(getattr(base, "_require_grads_hooks", None))
    try:
        base.activation_checkpointing_enable(options, every_n_layers=layers, offload=offload)
    except (AttributeError, ValueError) as problem:
        raise RecipeError(
            f"training.activation_checkpointing: {type(base).__name__} does not support it ({problem}); "
            "leave it out"
        ) from problem
    try:
        yield
    finally:
        base.activation_checkpointing_disable()
        # Frozen embeddings were hooked to pass gradients on to the layers that are computed anew.
        if not hooked:
            base.disable_input_require_grads()


@contextmanager
def _noisy_embeddings(base: Any, alpha: float | None) -> Iterator[None]:
    """NEFTune: uniform noise on the embeddings while training (Jain et al., 2023, arXiv:2310.05914)."""
    if alpha is None:
        yield
        return
    embeddings = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    if embeddings is None:
        raise RecipeError(
            f"training.neftune_noise_alpha: {type(base).__name__} has no input embeddings to add noise to; "
            "leave it out"
        )

    def add_noise(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:  # noqa: ARG001 (a hook)
        if not module.training:
            return embedded
        bound = alpha / math.sqrt(embedded.size(1) * embedded.size(2))
        return embedded + torch.empty_like(embedded).uniform_(-bound, bound)

    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
