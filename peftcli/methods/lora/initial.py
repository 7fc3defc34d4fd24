"""How a new adapter's A and B start. Some starts take what they hold out of the base weight, which then differs.

With those (PiSSA, OLoRA) the adapter's file holds A and B as they are, and loading it takes the same part out of the
base again, as PEFT does. It must be the same part: the random numbers that PiSSA's fast decomposition draws are
therefore always the same.

Where A and B were found beforehand (from data, or in the checkpoint that a run goes on from), they are handed over
with the base's module that the adapter will be on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftcli.adapters.base import Site
from peftcli.adapters.method import Sample, bare
from peftcli.adapters.patterns import by_pattern
from peftcli.adapters.weights import HALF, base_weight, weight_of
from peftcli.errors import AdapterError
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.difference import parted

if TYPE_CHECKING:
    from peftcli.methods.lora.layer import LoraLayer

_HANDED_OVER = "lora_start"


def rank_and_scaling(config: LoraConfig, name: str) -> tuple[int, float]:
    """What the adapter will have on a layer."""
    r = int(by_pattern(config.rank_pattern, name, config.r))
    alpha = by_pattern(config.alpha_pattern, name, config.lora_alpha)
    return r, alpha / (math.sqrt(r) if config.use_rslora else r)


def hand_over(module: nn.Module, start: type[Start], *factors: torch.Tensor) -> None:
    """Leaves with a module of the base how the next adapter on it that starts so starts: A, or A and B."""
    setattr(module, _HANDED_OVER, (start, factors))


def is_handed_over(module: nn.Module, start: Start) -> bool:
    """Whether something was left there for such a start."""
    return _HANDED_OVER in vars(module) and vars(module)[_HANDED_OVER][0] is type(start)


def taken_over(layer: LoraLayer, name: str, start: Start) -> tuple[torch.Tensor, ...]:
    """What was left with the layer's module, which is no longer there then; nothing where nothing was.

    Raises:
        AdapterError: where it is of another rank.
    """
    base = layer.get_base_layer()
    if not is_handed_over(base, start):
        return ()
    found: tuple[torch.Tensor, ...] = vars(base).pop(_HANDED_OVER)[1]
    if found[0].shape != layer.factors(name)[0].shape:
        raise AdapterError(
            f"the adapter's start was found for rank {len(found[0])}, and here its rank is {layer.r[name]}; prepare "
            "the model with the config that the adapter has"
        )
    return found


class Start(ABC):
    """One way to fill A and B."""

    changes_base = False
    # Only layers whose weight is one matrix, and is read here.
    linear_only = False
    # The adapter does nothing before it is trained.
    silent = True
    # The function that must have found it before there is an adapter.
    prepared_by = ""
    # An adapter that started so is for a base that is quantized.
    fits_quantized = False

    @abstractmethod
    def start(self, layer: LoraLayer, name: str) -> None:
        """Fills a new adapter's A and B."""

    def problem(self, r: int) -> str:  # noqa: ARG002  (most starts take any rank)
        """Why an adapter of this rank cannot start so, or nothing."""
        return ""

    def prepare(
        self,
        model: nn.Module,  # noqa: ARG002  (for starts that look at data)
        sites: Sequence[Site],  # noqa: ARG002
        config: LoraConfig,  # noqa: ARG002
        sample: Sample,  # noqa: ARG002
    ) -> str:
        """Finds A and B of the layers, hands them over, and completes the config: see `Method.prepare`."""
        return ""

    def recall(  # noqa: B027  (most starts need no memory)
        self, model: nn.Module, config: LoraConfig, saved: LoraConfig, state: Mapping[str, torch.Tensor]
    ) -> None:
        """The same from a checkpoint's adapter: see `Method.recall`."""


class Kaiming(Start):
    """A as nn.Linear starts, B zero; on embeddings A zero and B normal. The paper's code does this."""

    def start(self, layer: LoraLayer, name: str) -> None:
        """One of both factors is zero."""
        if name in layer.lora_embedding_A:
            nn.init.zeros_(layer.lora_embedding_A[name])
            nn.init.normal_(layer.lora_embedding_B[name])
            return
        self.fill(weight_of(layer.lora_A[name]), layer.r[name])
        weight_of(layer.lora_B[name]).zero_()

    def fill(self, weight: torch.Tensor, rank: int) -> None:  # noqa: ARG002  (others need it)
        """A's values."""
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


class Gaussian(Kaiming):
    """A normal with standard deviation 1/r, B zero."""

    def fill(self, weight: torch.Tensor, rank: int) -> None:
        """Of the rank that is, not of the experts' together."""
        nn.init.normal_(weight, std=1 / rank)


class Random(Start):
    """A and B both random: the adapter acts at once. For tests."""

    silent = False

    def start(self, layer: LoraLayer, name: str) -> None:
        """As the layers that hold them start by themselves."""
        if name in layer.lora_embedding_A:
            nn.init.normal_(layer.lora_embedding_A[name])
            nn.init.normal_(layer.lora_embedding_B[name])
            return
        for factor in (layer.lora_A[name], layer.lora_B[name]):
            nn.init.kaiming_uniform_(weight_of(factor), a=math.sqrt(5))


class Orthogonal(Start):
    """A and B random with B A = 0: their rows and columns come from two halves of one orthogonal basis."""

    linear_only = True

    def problem(self, r: int) -> str:
        """Both halves are of one size."""
        return "" if r % 2 == 0 else f"orthogonal needs an even rank, not {r}"

    def start(self, layer: LoraLayer, name: str) -> None:
        """B A = 0, though neither is."""
        A_RI, B_OR = layer.factors(name)
        rank, half = A_RI.shape[0], A_RI.shape[0] // 2
        exact: Any = {"dtype": torch.promote_types(A_RI.dtype, torch.float32), "device": A_RI.device}
        basis_RR, _ = torch.linalg.qr(torch.randn(rank, rank, **exact))
        A_RI.copy_((torch.randn(A_RI.shape[1], half, **exact) @ basis_RR[0::2]).T / 10)
        B_OR.copy_((torch.randn(B_OR.shape[0], half, **exact) @ basis_RR[1::2]) / 10)


class FromBase(Start):
    """A and B take a part of the base weight, which keeps the rest: W = rest + scaling · B A."""

    changes_base = True
    linear_only = True

    @abstractmethod
    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A_RI and B_OR; None to leave the base as it is."""

    def start(self, layer: LoraLayer, name: str) -> None:
        """The base layer gets a new parameter; a module that shared the old one keeps it."""
        base = layer.get_base_layer()
        weight = base_weight(base)
        if weight.is_meta:
            return
        W_OI = layer.matrix(weight.float() if weight.dtype in HALF else weight)
        scaling = layer.scaling[name]
        found = taken_over(layer, name, self) or self.parts(W_OI, layer.r[name], scaling)
        if found is None:
            Kaiming().start(layer, name)
            return
        A_RI, B_OR = (factor.to(W_OI) for factor in found)
        for factor, values in zip(layer.factors(name), (A_RI, B_OR), strict=True):
            factor.copy_(values)
        rest = layer.unmatrix(W_OI - scaling * (B_OR @ A_RI)).to(weight.dtype).contiguous()
        base.weight = nn.Parameter(rest, requires_grad=False)

    def recall(
        self,
        model: nn.Module,
        config: LoraConfig,  # noqa: ARG002
        saved: LoraConfig,
        state: Mapping[str, torch.Tensor],
    ) -> None:
        """A checkpoint's plain adapter holds the start beside what was trained."""
        if saved.init_lora_weights is not True:  # with DoRA there is no plain adapter
            return
        _, start = parted(state)
        for key, A_RI in start.items():
            name, _, rest = key.removeprefix("base_model.model.").partition(".lora_A.")
            if rest:
                B_OR = start[key.replace(".lora_A.", ".lora_B.")]
                hand_over(bare(model.get_submodule(name)), type(self), A_RI, B_OR)


class FromRows(FromBase):
    """A and B come from rows that were looked at beforehand.

    An adapter that is loaded from a file leaves the base as it is: it is for one that was changed when it started.
    """

    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> None:
        """What was not found beforehand cannot be found now."""


class Pissa(FromBase):
    """The largest singular values and their vectors, shared equally between A and B.

    Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation", 2024, arXiv:2404.02948.
    """

    def __init__(self, iterations: int | None = None) -> None:
        self.iterations = iterations

    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Exactly, or (`iterations`) by subspace iteration, which is fast."""
        if self.iterations is None:
            U_OK, S_K, V_KI = torch.linalg.svd(W_OI, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[W_OI.device] if W_OI.is_cuda else []):
                torch.manual_seed(0)
                U_OK, S_K, V_IK = torch.svd_lowrank(W_OI, q=min(r, *W_OI.shape), niter=self.iterations)
            V_KI = V_IK.T
        root_R = (S_K[:r] / scaling).sqrt()
        return root_R[:, None] * V_KI[:r], U_OK[:, :r] * root_R

    def __repr__(self) -> str:
        return f"Pissa({self.iterations})"


class Olora(FromBase):
    """The first columns and rows of a QR decomposition.

    Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024, arXiv:2406.01775.
    """

    def parts(self, W_OI: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """R's rows and Q's columns; PEFT's OLoRA leaves the scaling on top."""
        Q_OK, R_KI = torch.linalg.qr(W_OI)
        return R_KI[:r], Q_OK[:, :r]
