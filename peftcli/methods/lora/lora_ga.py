"""LoRA-GA: A and B start with singular vectors of the gradient, so that the first steps go where full ones would.

Wang et al., "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", 2024, arXiv:2407.05000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import Sample
from peftcli.adapters.targets import find_targets
from peftcli.adapters.weights import HALF, is_quantized, weight_of
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.init_configs import LoraGAConfig
from peftcli.methods.lora.initial import FromRows, hand_over, rank_and_scaling
from peftcli.methods.lora.rows import first_rows, in_mode, kept_tensors, linear_modules

# Enough that the gradient's largest singular vectors are the rows' and not chance's (section 4.4 of the paper).
ROWS = 64


class LoraGa(FromRows):
    """From the mean gradient over the first rows."""

    prepared_by = "preprocess_loraga"

    def prepare(self, model: nn.Module, sites: Sequence[Site], config: LoraConfig, sample: Sample) -> str:
        """Runs the model over rows forward and backward."""
        modules = linear_modules(sites)
        batches = list(first_rows(next(sample.epochs), ROWS))
        numbers: list[float] = []

        def train_step() -> None:
            for batch in batches:
                total, number = sample.loss(model, batch)
                numbers.append(max(float(number), 1.0))
                # By one number for all, so that it does not matter which rows share a batch.
                torch.autograd.backward(total / numbers[0])

        found = gradients(model, modules, train_step)
        share = len(batches) * numbers[0] / sum(numbers)
        _start(modules, config, {name: G * share for name, G in found.items()})
        return (
            f"init_lora_weights lora_ga: from the gradient over {len(batches)} batches of the training rows"
        )


def preprocess_loraga(
    model: nn.Module,
    lora_config: LoraConfig,
    train_step: Callable[[], object],
    cache_file: str | Path | None = None,
) -> None:
    """Leaves in a base model how an adapter with `init_lora_weights="lora_ga"` is to start; then call get_peft_model.

    Args:
        model: the base model.
        lora_config: the adapter's config.
        train_step: runs the model forward and backward over some batches, once or several times.
        cache_file: a file that keeps the gradients: read where it is there, else written.

    Raises:
        AdapterError: where there is nothing to be started so, or the base is quantized.
    """
    if lora_config.init_lora_weights != "lora_ga":
        raise AdapterError("preprocess_loraga needs a config with init_lora_weights='lora_ga'")
    modules = linear_modules(find_targets(model, lora_config, strict=True)[0])
    if not modules:
        raise AdapterError("the config names no linear layer, and LoRA-GA starts no others")
    if quantized := [name for name, module in modules.items() if is_quantized(module)]:
        raise AdapterError(f"{quantized[0]} is quantized, so it has no gradient; load the base unquantized")
    measured = kept_tensors(cache_file, partial(_named_gradients, model, modules, train_step))
    _start(modules, lora_config, {name.removesuffix(_SUFFIX): G for name, G in measured.items()})


# As PEFT names them in such a file.
_SUFFIX = "._peft_loraga_grad"


def _named_gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], train_step: Callable[[], object]
) -> dict[str, torch.Tensor]:
    return {f"{name}{_SUFFIX}": G for name, G in gradients(model, modules, train_step).items()}


def gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], train_step: Callable[[], object]
) -> dict[str, torch.Tensor]:
    """The mean gradient of each module's weight over the backward passes that `train_step` makes, in its shape."""
    sums: dict[str, torch.Tensor] = {}
    passes: dict[str, int] = {}

    def note(name: str, weight: torch.Tensor) -> None:
        if weight.grad is not None:  # of two modules that share a weight, the first has it
            grad = weight.grad.float() if weight.dtype in HALF else weight.grad
            sums[name] = sums[name] + grad if name in sums else grad
            passes[name] = passes.get(name, 0) + 1
            weight.grad = None

    weights: dict[str, Any] = {name: weight_of(module) for name, module in modules.items()}
    with in_mode(model, training=True), _only(model, weights.values()), torch.enable_grad():
        handles = [
            weight.register_post_accumulate_grad_hook(partial(note, name)) for name, weight in weights.items()
        ]
        train_step()
        for handle in handles:
            handle.remove()
    return {name: total / passes[name] for name, total in sums.items()}


@contextmanager
def _only(model: nn.Module, weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """Gradients for these weights and no others, for as long as the context lasts."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


@torch.no_grad()
def _start(
    modules: Mapping[str, nn.Module], config: LoraConfig, gradient: Mapping[str, torch.Tensor]
) -> None:
    for name, module in modules.items():
        if name not in gradient:  # as of an expert that no token went to
            continue
        r, scaling = rank_and_scaling(config, name)
        weight, G = weight_of(module).detach(), gradient[name]
        W_OI, G_OI = (weight.T, G.T) if isinstance(module, Conv1D) else (weight, G)
        if 2 * r > min(W_OI.shape):
            raise AdapterError(
                f"{name}: lora_ga takes 2 r = {2 * r} singular vectors, and the layer has {min(W_OI.shape)}; lower r"
            )
        if not bool(G_OI.isfinite().all()):
            raise AdapterError(
                f"{name}: lora_ga: its gradient is not finite; the rows or the base are broken"
            )
        settings = config.lora_ga_config or LoraGAConfig()
        hand_over(module, LoraGa, *factors(G_OI, W_OI.to(G_OI), r, scaling, settings))


def factors(
    G_OI: torch.Tensor, W_OI: torch.Tensor, r: int, scaling: float, config: LoraGAConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B from a weight's gradient G: of its first 2 r singular vectors, right ones in A and left ones in B."""
    U_OK, S_K, V_IK = torch.svd_lowrank(G_OI, q=min(4 * r, *G_OI.shape), niter=4)
    # Of both signs that a pair may have, the one that rounding does not decide: A and B take vectors of other pairs.
    signs_1K = V_IK.gather(0, V_IK.abs().argmax(0, keepdim=True)).sign()
    U_OK, V_IK = U_OK * signs_1K, V_IK * signs_1K
    chosen = torch.randperm(2 * r)[:r] if config.direction == "random" else None
    for_A, for_B = {
        "ArBr": (slice(1, 2 * r, 2), slice(0, 2 * r, 2)),
        "A2rBr": (slice(r, 2 * r), slice(r)),
        "ArB2r": (slice(r), slice(r, 2 * r)),
        "random": (chosen, chosen),
    }[config.direction]
    A_RI, S_R = V_IK.T[for_A], S_K[for_B]
    B_OR = U_OK[:, for_B] * S_R
    if config.scale == "stable":
        B_OR = B_OR * (len(G_OI) ** 0.25 / config.stable_gamma**0.5)
    elif config.scale == "weight_svd" and S_R[0] > 0:
        B_OR = B_OR * (torch.svd_lowrank(W_OI, q=r, niter=4)[1][0] / S_R[0])
    elif config.scale == "gd_scale":
        A_RI, B_OR = A_RI / scaling, B_OR / scaling
    return A_RI, B_OR
