"""EVA: A starts with the directions in which a layer's inputs vary most, and ranks go where they explain most.

Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", 2024, arXiv:2410.07170.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from peftcli.adapters.base import Site
from peftcli.adapters.method import Sample
from peftcli.adapters.patterns import by_pattern
from peftcli.adapters.targets import shortest
from peftcli.adapters.walk import walk
from peftcli.errors import AdapterError, PeftWarning
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.init_configs import EvaConfig
from peftcli.methods.lora.initial import Kaiming, hand_over, taken_over
from peftcli.methods.lora.rows import in_mode, kept, linear_modules, token_masks, watching
from peftcli.methods.lora.spectrum import Spectrum

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer

# Rows with little in common may never settle.
MOST_BATCHES = 1000


class Look(NamedTuple):
    """How to run the model over a batch, and how to read what its layers are given as rows of numbers."""

    run: Callable[[nn.Module, Any], object]
    # What `rows` needs to know of a batch.
    of_batch: Callable[[Any], Any]
    # The inputs (N, I) that count, from a layer's name, its arguments and that.
    rows: Callable[[str, tuple[Any, ...], Any], torch.Tensor]


class Found(NamedTuple):
    """Each layer's A, whose length is its new rank (maybe 0), and after how many batches it was found."""

    components: dict[str, torch.Tensor]
    batches: int


class Eva(Kaiming):
    """A from the rows where they were looked at, else as usual; B zero."""

    def start(self, layer: LoraLayer, name: str) -> None:
        """The adapter does nothing yet in either case."""
        super().start(layer, name)
        for components_RI in taken_over(layer, name, self):
            layer.factors(name)[0].copy_(components_RI)

    def prepare(self, model: nn.Module, sites: Sequence[Site], config: LoraConfig, sample: Sample) -> str:
        """Looks at rows until the components are settled; layers that got none are no longer targets."""
        modules = linear_modules(sites)
        eva = config.eva_config or EvaConfig()
        ignored = eva.label_mask_value if eva.use_label_mask else None
        look = Look(
            run=sample.loss,
            of_batch=lambda batch: token_masks(batch, ignored),
            rows=lambda name, args, masks: kept(args[0], masks),  # noqa: ARG005  (all layers alike)
        )
        found = find_components(model, modules, config, chain.from_iterable(sample.epochs), look)
        for name, components_RI in found.components.items():
            if len(components_RI):
                hand_over(modules[name], Eva, components_RI)
        share_out(config, model, sites, found.components)
        return _told(found, len(sites) - len(found.components))

    def recall(
        self,
        model: nn.Module,  # noqa: ARG002  (what was trained since is in the checkpoint's file)
        config: LoraConfig,
        saved: LoraConfig,
        state: Mapping[str, torch.Tensor],  # noqa: ARG002
    ) -> None:
        """The ranks, and the layers."""
        for field in ("target_modules", "rank_pattern", "alpha_pattern", *_LAYER_FIELDS):
            setattr(config, field, getattr(saved, field))


_LAYER_FIELDS = ("layers_to_transform", "layers_pattern")


@torch.no_grad()
def find_components(
    model: nn.Module, modules: Mapping[str, nn.Module], config: LoraConfig, batches: Iterable[Any], look: Look
) -> Found:
    """Runs the model over batches until the components that the layers would get are settled.

    Args:
        model: the model, whose adapters (if it has some) do nothing.
        modules: the modules whose inputs are looked at, by name.
        config: ranks, and `eva_config`.
        batches: may be endless.
        look: how to run over a batch, and what of the inputs counts.

    Raises:
        AdapterError: where there is no batch, or what the layers are given is not finite.
    """
    eva = config.eva_config or EvaConfig()
    coming = iter(batches)
    first = next(coming, None)
    if first is None:
        raise AdapterError("init_lora_weights eva: there is no batch to look at")
    with in_mode(model, training=False):
        owners, inputs = _alike(model, modules, first, look)
        if not owners:
            raise AdapterError("init_lora_weights eva: no linear layer is adapted that the rows reach")
        ranks = {name: int(by_pattern(config.rank_pattern, name, config.r)) for name in owners}
        limits = _limits(ranks, inputs, owners, eva.rho)
        spectra = {
            name: Spectrum(name, limits[name], eva.tau) for name, owner in owners.items() if name == owner
        }
        wanted, seen = dict(limits), 0
        for batch in islice(chain([first], coming), MOST_BATCHES):
            unsettled = [name for name, spectrum in spectra.items() if not spectrum.is_settled(wanted[name])]
            if not unsettled:
                break
            _take(model, {name: modules[name] for name in unsettled}, spectra, batch, look)
            seen += 1
            if all(spectrum.components_KI is not None for spectrum in spectra.values()):
                wanted = _ranks(spectra, owners, limits, sum(ranks.values()))
    _complain(spectra, wanted)
    return Found({name: _components(spectra[owners[name]], wanted[name], eva) for name in wanted}, seen)


def share_out(
    config: LoraConfig, model: nn.Module, sites: Sequence[Site], components: Mapping[str, torch.Tensor]
) -> None:
    """Writes the layers' new ranks into a config, as PEFT does: by their whole names.

    Args:
        config: what is changed.
        model: the base model.
        sites: what the config names.
        components: the A of those that were looked at, by their names.
    """
    eva = config.eva_config or EvaConfig()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name in (site.name for site in sites):
        before = by_pattern(config.rank_pattern, name, config.r)
        rank = len(components[name]) if name in components else before
        alpha = by_pattern(config.alpha_pattern, name, config.lora_alpha)
        if eva.adjust_scaling_factors and rank != before:
            alpha *= rank / before
        if rank and rank != config.r:
            ranks[name] = rank
        if rank and alpha != config.lora_alpha:
            alphas[name] = alpha
    config.rank_pattern, config.alpha_pattern = dict(sorted(ranks.items())), dict(sorted(alphas.items()))
    dropped = {name for name, components_RI in components.items() if not len(components_RI)}
    if dropped:
        left = {site.name for site in sites if site.name not in dropped and not site.parameter}
        config.target_modules = shortest(left, [site.name for site in walk(model)])
        for field in _LAYER_FIELDS:  # the names say which layers are left
            setattr(config, field, None)


def _alike(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Any, look: Look
) -> tuple[dict[str, str], dict[str, int]]:
    """For each module that the batch reaches the first with the same inputs, maybe itself; and how many inputs.

    Queries, keys and values are made of one tensor: one look is enough for them.
    """
    given: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
    group: dict[str, str] = {}
    sizes: dict[str, int] = {}

    def see(name: str, args: tuple[Any, ...]) -> None:
        x = args[0]
        known = given.get(id(x))
        if known is None or known[0]() is not x:  # another tensor was there, and is no longer
            known = given[id(x)] = weakref.ref(x), name
        if name not in group:
            group[name], sizes[name] = known[1], x.shape[-1]

    with watching(modules, see):
        look.run(model, batch)
    firsts: dict[str, str] = {}
    return {name: firsts.setdefault(group[name], name) for name in modules if name in group}, sizes


def _limits(
    ranks: Mapping[str, int], inputs: Mapping[str, int], owners: Mapping[str, str], rho: float
) -> dict[str, int]:
    """The most components that each layer may have, and that are looked for; the same for layers that are alike."""
    most: dict[str, int] = {}
    for name, owner in owners.items():
        most[owner] = max(most.get(owner, 0), min(round(ranks[name] * rho), inputs[name]))
    return {name: most[owner] for name, owner in owners.items()}


def _take(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    spectra: Mapping[str, Spectrum],
    batch: Any,
    look: Look,
) -> None:
    told = look.of_batch(batch)
    with watching(modules, lambda name, args: spectra[name].add(look.rows(name, args, told))):
        look.run(model, batch)


def _ranks(
    spectra: Mapping[str, Spectrum], owners: Mapping[str, str], limits: Mapping[str, int], budget: int
) -> dict[str, int]:
    """How many of the best components of all layers each layer has; of layers that are alike, the first has most."""
    order = [*spectra, *(name for name, owner in owners.items() if name != owner)]
    shares = [spectra[owners[name]].ratios_K[: limits[name]] for name in order]
    named = [name for name, share_K in zip(order, shares, strict=True) for _ in share_K]
    best = torch.cat(shares).argsort(descending=True)[:budget]
    counts = Counter(named[place] for place in best.tolist())
    ranks = {name: counts[name] for name in order}
    for name in order[len(spectra) :]:
        ranks[name], ranks[owners[name]] = sorted((ranks[name], ranks[owners[name]]))
    return ranks


def _components(spectrum: Spectrum, rank: int, eva: EvaConfig) -> torch.Tensor:
    assert spectrum.components_KI is not None
    A_RI = spectrum.components_KI[:rank]
    return A_RI / spectrum.values_K[:rank, None].sqrt() if eva.whiten else A_RI.clone()


def _complain(spectra: Mapping[str, Spectrum], wanted: Mapping[str, int]) -> None:
    empty = [name for name, spectrum in spectra.items() if spectrum.components_KI is None]
    if empty:
        raise AdapterError(
            f"eva: {MOST_BATCHES} batches hold too few tokens for {spectra[empty[0]].size} components of "
            f"{empty[0]}; lower eva_config.rho, or set eva_config.use_label_mask to false"
        )
    unsettled = [name for name, spectrum in spectra.items() if not spectrum.is_settled(wanted[name])]
    if unsettled:
        warnings.warn(
            f"eva: after {MOST_BATCHES} batches the components of {len(unsettled)} layers still move, "
            "and are taken as they are (a lower eva_config.tau asks for less)",
            PeftWarning,
            stacklevel=4,
        )


def _told(found: Found, others: int) -> str:
    ranks = [len(components_RI) for components_RI in found.components.values()]
    kept_ranks = [rank for rank in ranks if rank]
    said = f"{len(kept_ranks)} layers have ranks {min(kept_ranks)} to {max(kept_ranks)}"
    if len(kept_ranks) < len(ranks):
        said += f", {len(ranks) - len(kept_ranks)} got none"
    if others:
        said += f", {others} start as usual"
    return f"init_lora_weights eva: from {found.batches} batches of the training rows {said}"
