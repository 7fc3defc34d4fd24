"""LoRA on a parameter: W becomes W + scaling · B A while its module runs, whatever the module does with it.

Made for mixtures of experts, which keep the weights of all experts of a layer in one tensor. Suffixes: E experts,
O outputs, I inputs, R rank. W is (E, O, I), or (E, I, O) where the module says `is_transposed`, or one matrix (O, I).
As in PEFT's files, A is (E R, I), one expert after another, and B is (O, R E), in which experts alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import bare
from peftcli.adapters.weights import HALF, base_weight, exact, is_quantized, weight_of
from peftcli.kernels.updated_weight import UpdatedWeight, reference
from peftcli.methods.lora.layer import LoraLayer, empty_linear

_TAKEN = (*HALF, torch.float32, torch.float64)
# The implementations of Transformers' experts that read their weights by PyTorch's functions, and not by kernels.
_PLAIN_EXPERTS = {None, "eager", "batched_mm", "grouped_mm"}


class ParamWrapper(LoraLayer):
    """A module with LoRA adapters on one of its parameters.

    Inputs go to the module and not through the weight: what LoRA does with inputs (`update`, …) has no meaning here.
    """

    takes_adapter_names = False

    def __init__(self, base_layer: nn.Module, parameter: str) -> None:
        super().__init__(base_layer)
        self.parameter = self.weight_name = parameter
        base: Any = self.get_base_layer()
        shape = weight_of(base, parameter).shape
        self.is_transposed = len(shape) == 3 and getattr(base, "is_transposed", False)
        self.num_experts = shape[0] if len(shape) == 3 else None
        self.out_features, self.in_features = shape[-2:][::-1] if self.is_transposed else shape[-2:]

    def make_factors(self, name: str, r: int, device: torch.device, dtype: torch.dtype) -> None:
        """A and B of all experts, each in one linear layer."""
        rows = r * (self.num_experts or 1)
        for container, sides in (
            (self.lora_A, (self.in_features, rows)),
            (self.lora_B, (rows, self.out_features)),
        ):
            container[name] = empty_linear(*sides, device, dtype)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (E, R, I) and B (E, O, R), or (R, I) and (O, R), which share the adapter's memory."""
        A, B = weight_of(self.lora_A[name]), weight_of(self.lora_B[name])
        if self.num_experts is None:
            return A, B
        B_ORE = B.view(len(B), -1, self.num_experts)
        return A.view(self.num_experts, -1, A.shape[1]), B_ORE.permute(2, 0, 1)

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """W as (E, O, I) or (O, I), or one expert's."""
        return weight.mT if self.is_transposed else weight

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """As the module keeps it."""
        return matrix_OI.mT if self.is_transposed else matrix_OI

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight with these adapters in it; of experts rounded one by one, since all unrounded would be large."""
        if self.num_experts is None:
            return super().merge_tensors(names)
        weight = base_weight(self.get_base_layer(), self.parameter)
        merged = torch.empty_like(weight)
        for index in range(self.num_experts):
            sum_OI = self.matrix(weight[index].to(exact(weight)))
            for name in names:
                A_RI, B_OR = (factor[index].to(sum_OI.dtype) for factor in self.factors(name))
                sum_OI = torch.addmm(sum_OI, B_OR, A_RI, alpha=self.scaling[name])
            merged[index] = self.unmatrix(sum_OI)
        return {self.parameter: merged}

    def extra_repr(self) -> str:
        """Which parameter it is, for who prints the model."""
        return f"parameter={self.parameter}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, with the updated weight in the parameter's place for as long as it runs."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        names = [] if self._disable_adapters or self.merged_adapters else self._own_active()
        if not names:
            return self.base_layer(*args, **kwargs)
        return functional_call(
            self.base_layer, {self._path(): self.updated(names)}, args, kwargs, tie_weights=False
        )

    def updated(self, names: Sequence[str]) -> torch.Tensor:
        """W with these adapters: as one sum, or unmade where the module's operations are PyTorch's."""
        base: Any = self.get_base_layer()
        weight = weight_of(base, self.parameter)
        lefts, rights = [], []
        for name in names:
            A_ERI, B_EOR = self.factors(name)
            rights.append(A_ERI.to(weight.dtype) * self.scaling[name])
            # By rows, which grouped products must have; `contiguous` leaves the strides of sides of 1 as they are.
            lefts.append(B_EOR.to(weight.dtype).mT.clone(memory_format=torch.contiguous_format))
        left, right = _stacked(lefts).mT, _stacked(rights)
        if self.is_transposed:
            left, right = right.mT, left.mT
        implementation = getattr(getattr(base, "config", None), "_experts_implementation", None)
        if torch.compiler.is_compiling() or implementation not in _PLAIN_EXPERTS:
            return reference(weight, left, right)
        return UpdatedWeight(weight, left, right)

    def _path(self) -> str:
        """Where the parameter is below `base_layer`."""
        path, inside = self.parameter, self.base_layer
        while isinstance(inside, AdapterLayer):
            path, inside = f"base_layer.{path}", inside.base_layer
        return path


def parameter_problem(site: Site) -> str:
    """Why a parameter cannot be adapted, or nothing."""
    base = bare(site.module)
    weight = weight_of(base, site.parameter)
    if is_quantized(base, site.parameter) or weight.dtype not in _TAKEN:
        return f"{site.name} is stored as {weight.dtype}; load the base unquantized"
    if weight.dim() not in (2, 3):
        return f"{site.name} has {weight.dim()} dimensions; target_parameters takes matrices, or several in one (3)"
    if weight.is_meta and hasattr(base, "_hf_hook"):
        return f"{site.name} is offloaded, and would come back without its adapter; keep it on a device"
    return ""


def _stacked(ranks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Several adapters' factors (…, R, N) as those of one."""
    return ranks[0] if len(ranks) == 1 else torch.cat(list(ranks), -2)
