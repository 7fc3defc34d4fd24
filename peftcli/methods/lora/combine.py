"""One LoRA adapter made of several, without training.

Either the factors are combined (`linear` and its kin: all of one rank, and only roughly the sum of the updates), or put
side by side (`cat`: exactly the sum, its rank the sum of ranks), or the updates are combined and factored anew (`svd`
and its kin: the nearest of the rank that is asked for).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.method import AddOptions
from peftcli.adapters.saved_modules import ModulesToSaveWrapper
from peftcli.adapters.targets import shortest
from peftcli.adapters.tokens import TrainableTokensLayer
from peftcli.adapters.walk import walk
from peftcli.errors import AdapterError, did_you_mean
from peftcli.methods.lora.arithmetic import ARITHMETICS
from peftcli.methods.lora.layer import LoraLayer

COMBINATIONS = ("svd", "cat", *ARITHMETICS, *(f"{name}_svd" for name in ARITHMETICS if name != "linear"))


class Recipe(NamedTuple):
    """How a combination is made of its adapters; the fields are `add_weighted_adapter`'s."""

    combination_type: str
    rank: int
    svd_clamp: float | None = None
    svd_driver: str | None = None
    density: float | None = None
    majority_sign_method: str = "total"


class Part(NamedTuple):
    """One adapter's share on a layer."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scaling: float
    weight: float


def add_weighted_adapter(  # noqa: PLR0917  (PEFT's signature)
    tuner: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,  # noqa: ARG001  (PEFT's; what is kept of the matrices is the same)
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Adds an adapter that is a weighted sum of others; it is not active, and not trained.

    Args:
        tuner: the model with the adapters.
        adapters: their names.
        weights: one for each; negative ones take an adapter's effect away.
        adapter_name: the new adapter's.
        combination_type: svd, linear, cat, ties, dare_linear, dare_ties, magnitude_prune; or one of the last four
            with `_svd`.
        svd_rank: the new adapter's rank, where it is factored anew; default: the largest of theirs.
        svd_clamp: the quantile that clamps the new factors.
        svd_full_matrices: has no effect.
        svd_driver: of CUDA's solvers, for `torch.linalg.svd`.
        density: the share of entries to keep, where some are dropped.
        majority_sign_method: how ties elects signs: by their "total" or their "frequency".

    Raises:
        AdapterError: where the adapters cannot be combined so.
    """
    for name in adapters:
        tuner.method_of(name)
    configs = [tuner.peft_config[name] for name in adapters]
    kind = _checked(tuner, adapters, weights, combination_type, configs)
    ranks = [max(config.r, *config.rank_pattern.values(), 0) for config in configs]
    rank = sum(ranks) if kind == "cat" else svd_rank if svd_rank and kind.endswith("svd") else max(ranks)
    recipe = Recipe(kind, rank, svd_clamp, svd_driver, density, majority_sign_method)
    config = _config(tuner, adapters, configs, rank)
    tuner.attach(adapter_name, config, activate=False, strict=False, options=AddOptions(initialise=False))
    tuner.set_requires_grad(adapter_name, False)
    try:
        _fill(tuner, adapters, weights, adapter_name, recipe)
    except AdapterError:
        tuner.delete_adapter(adapter_name)
        raise


def _checked(
    tuner: Any, adapters: Sequence[str], weights: Sequence[float], kind: str, configs: Sequence[Any]
) -> str:
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"give one weight for each adapter: {len(adapters)} adapters, {len(weights)} weights"
        )
    if kind not in COMBINATIONS:
        raise AdapterError(f"combination_type {kind!r} is unknown; {did_you_mean(kind, COMBINATIONS)}")
    if any(config.target_parameters for config in configs):
        raise AdapterError("adapters on parameters (target_parameters) cannot be combined")
    if any(config.use_dora for config in configs):
        raise AdapterError("adapters with DoRA are no sums; they cannot be combined")
    if any(config.alora_invocation_tokens != configs[0].alora_invocation_tokens for config in configs):
        raise AdapterError(
            "the adapters are called by different alora_invocation_tokens; they cannot be combined"
        )
    training = [name for name, config in zip(adapters, configs, strict=True) if config.trains_tokens]
    if len(training) > 1:
        raise AdapterError(f"{', '.join(training)} each train tokens (trainable_token_indices)")
    for layer in tuner.layers():
        if isinstance(layer, ModulesToSaveWrapper):
            own = [name for name in adapters if name in layer.modules_to_save]
            if len(own) > 1:
                raise AdapterError(f"{', '.join(own)} each have their own copy of a module (modules_to_save)")
    return "linear" if len(adapters) == 1 else kind


def _config(tuner: Any, adapters: Sequence[str], configs: Sequence[Any], rank: int) -> Any:
    """That of the first, on all layers that any of them is on; scaled by 1."""
    sites = list(walk(tuner.model))
    on = {
        site.name
        for site in sites
        if isinstance(site.module, AdapterLayer) and set(site.module.adapter_names()) & set(adapters)
    }
    whole = {name for config in configs for name in config.modules_to_save or ()}
    tokens = [config.trainable_token_indices for config in configs if config.trains_tokens]
    return dataclasses.replace(
        configs[0],
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        init_lora_weights=True,
        rank_pattern={},
        alpha_pattern={},
        target_modules=shortest(on, [site.name for site in sites]),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        modules_to_save=sorted(whole) or None,
        trainable_token_indices=tokens[0] if tokens else None,
        ensure_weight_tying=any(config.ensure_weight_tying for config in configs),
    )


@torch.no_grad()
def _fill(
    tuner: Any, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, recipe: Recipe
) -> None:
    for layer in tuner.layers():
        if isinstance(layer, ModulesToSaveWrapper):
            for name in set(adapters) & set(layer.modules_to_save):
                copied = layer.modules_to_save[name].state_dict()
                layer.modules_to_save[adapter_name].load_state_dict(copied)
        elif isinstance(layer, TrainableTokensLayer) and adapter_name in layer.token_indices:
            for name in set(adapters) & set(layer.token_indices):
                layer.trainable_tokens_delta[adapter_name].copy_(layer.trainable_tokens_delta[name])
        elif isinstance(layer, LoraLayer) and adapter_name in layer.r:
            parts = [
                Part(*layer.factors(name), layer.scaling[name], weight)
                for name, weight in zip(adapters, weights, strict=True)
                if name in layer.r
            ]
            for factor, values in zip(layer.factors(adapter_name), _combined(parts, recipe), strict=True):
                factor.zero_()
                factor[: values.shape[0], : values.shape[1]] = values


def _combined(parts: Sequence[Part], recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """A_RI and B_OR; their rank may be below the recipe's."""
    kind = recipe.combination_type
    if kind == "cat":
        scaled = [part.A_RI * part.weight * part.scaling for part in parts]
        return torch.cat(scaled), torch.cat([part.B_OR for part in parts], 1)
    arithmetic = ARITHMETICS["linear" if kind == "svd" else kind.removesuffix("_svd")]

    def add(tasks: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
        return arithmetic.sum(tasks, shares, recipe.density, recipe.majority_sign_method)

    return _factored(parts, recipe, add) if kind.endswith("svd") else _of_factors(parts, kind, add)


Add = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]


def _of_factors(parts: Sequence[Part], kind: str, add: Add) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors, each weighted by the root of the share; A takes its sign."""
    ranks = {len(part.A_RI) for part in parts}
    if len(ranks) > 1:
        raise AdapterError(f"{kind} needs adapters of one rank, not {sorted(ranks)}; use svd or cat")
    shares = [part.weight * part.scaling for part in parts]
    roots = [math.sqrt(abs(share)) for share in shares]
    signed = [math.copysign(root, share) for root, share in zip(roots, shares, strict=True)]
    return add([part.A_RI for part in parts], signed), add([part.B_OR for part in parts], roots)


def _factored(parts: Sequence[Part], recipe: Recipe, add: Add) -> tuple[torch.Tensor, torch.Tensor]:
    """The updates' sum, and the factors of the matrix of that rank that is nearest to it."""
    wide = torch.promote_types(parts[0].A_RI.dtype, torch.float32)
    updates = [(part.B_OR.to(wide) @ part.A_RI.to(wide)) * part.scaling for part in parts]
    sum_OI = add(updates, [part.weight for part in parts])
    U_OK, S_K, V_KI = torch.linalg.svd(sum_OI, full_matrices=False, driver=recipe.svd_driver)
    B_OR, A_RI = U_OK[:, : recipe.rank] * S_K[: recipe.rank], V_KI[: recipe.rank]
    if recipe.svd_clamp is not None:
        limit = torch.cat([B_OR.flatten(), A_RI.flatten()]).quantile(recipe.svd_clamp).item()
        B_OR, A_RI = B_OR.clamp(-limit, limit), A_RI.clamp(-limit, limit)
    return A_RI, B_OR
