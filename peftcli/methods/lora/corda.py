"""CorDA: A and B start with directions of the weight, seen through the covariance of what it is multiplied with.

Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models", 2024, arXiv:2406.05223.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import Site
from peftcli.adapters.method import Sample
from peftcli.adapters.targets import find_targets
from peftcli.adapters.weights import weight_of
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.init_configs import CordaConfig
from peftcli.methods.lora.initial import FromRows, hand_over, rank_and_scaling
from peftcli.methods.lora.rows import (
    Masks,
    by_row,
    first_rows,
    in_mode,
    kept_tensors,
    linear_modules,
    token_masks,
    watching,
)

# As many as the paper takes.
ROWS = 256


class Eigens(NamedTuple):
    """A weight's singular vectors and values through the covariance C: those of W C, the right ones times C⁻¹."""

    U_OR: torch.Tensor
    S_R: torch.Tensor
    V_IR: torch.Tensor


class Corda(FromRows):
    """From the covariances over the first rows."""

    prepared_by = "preprocess_corda"

    def prepare(self, model: nn.Module, sites: Sequence[Site], config: LoraConfig, sample: Sample) -> str:
        """Runs the model over rows."""
        modules, settings = linear_modules(sites), config.corda_config or CordaConfig()
        batches = list(first_rows(next(sample.epochs), ROWS))
        masks: dict[tuple[int, ...], torch.Tensor] = {}

        def run() -> None:
            for batch in batches:
                masks.clear()
                masks.update(token_masks(batch))
                sample.loss(model, batch)

        _start(
            modules,
            config,
            _eigens(modules, config, partial(_covariances, model, modules, run, settings, masks)),
        )
        return (
            f"init_lora_weights corda: from the covariances over {len(batches)} batches of the training rows"
        )


def preprocess_corda(
    model: nn.Module,
    lora_config: LoraConfig,
    run_model: Callable[[], object] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Leaves in a base model how an adapter with `init_lora_weights="corda"` is to start; then call get_peft_model.

    Args:
        model: the base model.
        lora_config: the adapter's config.
        run_model: runs `hooked_model` over rows, one at a time or several of one length; not needed where a file of
            `corda_config` is there.
        hooked_model: the model that it runs, where that is another one with the same layers.

    Raises:
        AdapterError: where there is nothing to be started so, or the rows are missing or broken.
    """
    if lora_config.init_lora_weights != "corda":
        raise AdapterError("preprocess_corda needs a config with init_lora_weights='corda'")
    modules = linear_modules(find_targets(model, lora_config, strict=True)[0])
    if not modules:
        raise AdapterError("the config names no linear layer, and CorDA starts no others")
    hooked = hooked_model or model
    there = dict(hooked.named_modules())
    watched = {name: there[name] for name in modules if name in there}
    settings = lora_config.corda_config or CordaConfig()
    find = partial(_covariances, hooked, watched, run_model, settings, {})
    _start(modules, lora_config, _eigens(modules, lora_config, find))


def _eigens(
    modules: Mapping[str, nn.Module], config: LoraConfig, covariances: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The parts of every module's `Eigens`, named as PEFT names them in a cache file."""
    settings = config.corda_config or CordaConfig()

    def decomposed() -> dict[str, torch.Tensor]:
        found = kept_tensors(settings.covariance_file, covariances)
        names = track(
            [name for name in modules if name in found],
            "decomposing",
            console=Console(stderr=True),
            disable=not settings.verbose,
        )
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            weight = weight_of(modules[name]).detach().float()
            W_OI = weight.T if isinstance(modules[name], Conv1D) else weight
            r, _ = rank_and_scaling(config, name)
            eigens = decomposition(W_OI, found[name].to(W_OI), r, settings.corda_method)
            tensors |= {f"{name}{_PART}{part}": tensor for part, tensor in zip(_PARTS, eigens, strict=True)}
        return tensors

    return kept_tensors(settings.cache_file, decomposed)


_PART, _PARTS = ".eigens.", ("U_WC", "S_WC", "V_WC")


@torch.no_grad()
def _covariances(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    run: Callable[[], object] | None,
    config: CordaConfig,
    masks: Masks,
) -> dict[str, torch.Tensor]:
    """The mean, over rows, of each module's inputs' covariance (I, I); the inputs are scaled row by row."""
    if run is None:
        raise AdapterError("run_model is needed where no file of corda_config is there")
    sums: dict[str, torch.Tensor] = {}
    rows: dict[str, int] = {}

    def see(name: str, args: tuple[Any, ...]) -> None:
        for x_TI in by_row(args[0].detach(), masks):
            if len(x_TI):
                C_II = _covariance(name, x_TI if config.use_float16_for_covariance else x_TI.float())
                sums[name] = sums[name] + C_II if name in sums else C_II
                rows[name] = rows.get(name, 0) + 1

    with in_mode(model, training=False), watching(modules, see):
        run()
    return {name: total / rows[name] for name, total in sums.items()}


def _covariance(name: str, x_TI: torch.Tensor) -> torch.Tensor:
    peak = float(x_TI.max().abs()) or float(x_TI.abs().max()) or 1.0
    x_TI = x_TI / peak
    C_II = x_TI.T @ x_TI
    if not bool(C_II.isfinite().all()):
        raise AdapterError(f"{name}: the rows give it inputs that are not finite; the base is broken")
    return C_II


@torch.no_grad()
def decomposition(W_OI: torch.Tensor, C_II: torch.Tensor, r: int, method: str) -> Eigens:
    """The first r singular vectors (`ipm`: what the rows use most) or the last (`kpm`: what they use least)."""
    damped_II, inverse_II = _inverted(C_II)
    U_OK, S_K, V_KI = torch.linalg.svd(W_OI @ damped_II, full_matrices=False)
    V_IK = (V_KI @ inverse_II).T
    if r > len(S_K):
        raise AdapterError(f"corda takes {r} singular vectors, and the layer has {len(S_K)}; lower r")
    part = slice(r) if method == "ipm" else slice(len(S_K) - r, None)
    return Eigens(U_OK[:, part].contiguous(), S_K[part].clone(), V_IK[:, part].contiguous())


def _inverted(C_II: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The covariance, damped until its inverse is one; and that."""
    unit_II = torch.eye(len(C_II), device=C_II.device)
    damping = 0.01
    for _ in range(_MOST_DAMPINGS):
        damped_II = C_II + damping * C_II.diagonal().mean() * unit_II
        inverse_II, failed = torch.linalg.inv_ex(damped_II)
        if not int(failed) and float(torch.dist(damped_II @ inverse_II, unit_II)) < 0.05:
            return damped_II, inverse_II
        damping *= 2
    raise AdapterError("corda: a layer's inputs have no covariance that can be inverted; give it more rows")


# Twice as much each time: this is far beyond the covariance itself.
_MOST_DAMPINGS = 40


@torch.no_grad()
def _start(modules: Mapping[str, nn.Module], config: LoraConfig, eigens: Mapping[str, torch.Tensor]) -> None:
    for name, module in modules.items():
        keys = [f"{name}{_PART}{part}" for part in _PARTS]
        if not all(key in eigens for key in keys):  # as of an expert that no token went to
            continue
        U_OR, S_R, V_IR = (eigens[key] for key in keys)
        _, scaling = rank_and_scaling(config, name)
        root_R = (S_R / scaling).sqrt()
        hand_over(module, Corda, root_R[:, None] * V_IR.T, U_OR * root_R)
