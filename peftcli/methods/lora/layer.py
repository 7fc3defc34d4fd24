"""LoRA on a layer: W x becomes W x + scaling · B A x.

Every kind of layer states how its weight reads as one matrix W_OI (outputs, inputs), and with that merging, DoRA and
the initialisations are written once. Suffixes: O outputs, I inputs, R rank; a convolution's inputs are channels ×
kernel, and an embedding's are its rows (a token is a one-hot input).

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer, SavedTensor, rows_of
from peftcli.adapters.blank import blank, put
from peftcli.adapters.method import AddOptions
from peftcli.adapters.plain import is_called_plainly
from peftcli.adapters.weights import adapter_dtype, base_weight, exact, weight_of
from peftcli.kernels.lora_linear import Weights, fused, without_gradient
from peftcli.methods.lora.config import LoraConfig
from peftcli.methods.lora.starts import STRATEGIES, strategy_of
from peftcli.methods.lora.variants import VARIANTS, Variant

_VALUES = ("r", "lora_alpha", "scaling", "use_rslora", "use_dora", "lora_variant")
_CONTAINERS: dict[str, type[nn.Module]] = {
    "lora_dropout": nn.ModuleDict,
    "lora_A": nn.ModuleDict,
    "lora_B": nn.ModuleDict,
    "lora_embedding_A": nn.ParameterDict,
    "lora_embedding_B": nn.ParameterDict,
    "lora_magnitude_vector": nn.ModuleDict,
}


class LoraLayer(AdapterLayer):
    """A layer with LoRA adapters on it; what all kinds of layers share."""

    adapter_layer_names = (
        "lora_A",
        "lora_B",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
    )
    other_param_names = (
        "r",
        "lora_alpha",
        "scaling",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "lora_variant",
    )

    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    use_rslora: dict[str, bool]
    use_dora: dict[str, bool]
    lora_variant: dict[str, Variant]
    lora_dropout: nn.ModuleDict
    lora_A: nn.ModuleDict  # noqa: N815  (PEFT's names)
    lora_B: nn.ModuleDict  # noqa: N815
    lora_embedding_A: nn.ParameterDict  # noqa: N815
    lora_embedding_B: nn.ParameterDict  # noqa: N815
    lora_magnitude_vector: nn.ModuleDict

    takes_adapter_names = True
    # The parameter of the base layer that adapters are on.
    weight_name = "weight"
    is_linear = False
    # Whether dropout acts on the inputs; an embedding's are token ids.
    drops_inputs = True

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # Past nn.Module's own way of setting an attribute, which is slow: a mixture of experts has thousands of layers.
        vars(self).update({name: {} for name in _VALUES})
        self._modules.update({name: blank(kind) for name, kind in _CONTAINERS.items()})

    @abstractmethod
    def make_factors(self, name: str, r: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes an adapter's A and B, with values that do not matter."""

    @abstractmethod
    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A_RI and B_OR, as matrices that share the adapter's memory."""

    @abstractmethod
    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the base layer's shape as W_OI."""

    @abstractmethod
    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """W_OI in the shape of the base layer's weight."""

    @abstractmethod
    def base_product(self, x: torch.Tensor) -> torch.Tensor:
        """The base layer's output for `x`, without its bias."""

    @abstractmethod
    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """B A x, not scaled, without dropout."""

    @abstractmethod
    def per_output(self, values_O: torch.Tensor) -> torch.Tensor:
        """A value per output, shaped to multiply the layer's output."""

    def magnitude_shape(self, outputs: int) -> tuple[int, ...]:
        """The shape in which PEFT keeps DoRA's magnitudes."""
        return (outputs,)

    def add(self, name: str, r: int, lora_alpha: float, config: LoraConfig, options: AddOptions) -> None:
        """Makes a new adapter of this rank."""
        base = self.get_base_layer()
        weight = weight_of(base, self.weight_name)
        dtype = adapter_dtype(base, self.weight_name, autocast=options.autocast_adapter_dtype)
        self.r[name], self.lora_alpha[name] = r, lora_alpha
        self.use_rslora[name], self.use_dora[name] = config.use_rslora, config.use_dora
        self.set_scale(name, 1.0)
        drops = config.lora_dropout and self.drops_inputs
        put(self.lora_dropout, name, nn.Dropout(config.lora_dropout) if drops else blank(nn.Identity))
        self.lora_variant[name] = VARIANTS[
            "dora" if config.use_dora else "activated" if config.reads_inputs else "plain"
        ]
        self.make_factors(name, r, weight.device, dtype)
        strategy = strategy_of(config)
        if (
            strategy.linear_only and not self.is_linear
        ):  # only in files of PEFT, which starts such layers plainly
            strategy = STRATEGIES[True]
        if options.initialise or strategy.changes_base:
            with torch.no_grad():
                strategy.start(self, name)
        self.lora_variant[name].add(self, name)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Makes an adapter's factor `scale` times what its config says."""
        if adapter in self.r:
            rank = math.sqrt(self.r[adapter]) if self.use_rslora[adapter] else self.r[adapter]
            self.scaling[adapter] = scale * self.lora_alpha[adapter] / rank

    def scale_layer(self, scale: float) -> None:
        """Multiplies the factors of the active adapters."""
        for name in self._own_active():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divides the factors of the active adapters, or gives them back what their config says."""
        for name in self._own_active():
            if scale is None:
                self.set_scale(name, 1.0)
            else:
                self.scaling[name] /= scale

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Scaled B A in the shape of the base layer's weight."""
        A_RI, B_OR = self.factors(adapter)
        return self.unmatrix((B_OR @ A_RI) * self.scaling[adapter])

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight with these adapters in it, one after another as in `forward`."""
        weight = base_weight(self.get_base_layer(), self.weight_name)
        W_OI = self.matrix(weight.to(exact(weight)))
        merged_OI = W_OI.clone()
        for name in names:
            merged_OI = self.lora_variant[name].merged(self, name, W_OI, merged_OI)
        return {self.weight_name: self.unmatrix(merged_OI).contiguous()}

    def adapter_tensors(self, name: str) -> Iterator[SavedTensor]:
        """As every layer's; DoRA's magnitudes are saved without the `.weight` that their module gives them."""
        for item in super().adapter_tensors(name):
            if item.saved == "lora_magnitude_vector.weight":
                yield item._replace(saved="lora_magnitude_vector")
            else:
                yield item

    def forward(
        self,
        x: torch.Tensor,
        *args: Any,
        adapter_names: Sequence[str] | None = None,
        alora_offsets: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The base layer's output, with what the active adapters add, in the base layer's dtype.

        With `adapter_names` each row has the adapter of that name. `alora_offsets` has for each adapter with aLoRA on
        how many of each row's last tokens it acts.
        """
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged_adapters:
            return result
        dtype, given = result.dtype, alora_offsets or {}
        if adapter_names is not None:
            for name, rows in rows_of(adapter_names, x).items():
                if name in self.r:
                    offsets = given[name][rows] if name in given else None
                    changed = self.lora_variant[name].forward(self, name, x[rows], result[rows], offsets)
                    result[rows] = changed.to(dtype)
            return result
        for name in self._active_adapter:
            if name in self.r:
                result = self.lora_variant[name].forward(self, name, x, result, given.get(name))
        return result.to(dtype)

    def _own_active(self) -> list[str]:
        return [name for name in self._active_adapter if name in self.r]

    def __repr__(self) -> str:
        return f"lora.{super().__repr__()}"


class Linear(LoraLayer):
    """LoRA on nn.Linear, or on the Conv1D of Transformers, which keeps its weight as (inputs, outputs)."""

    is_linear = True

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        base: Any = self.get_base_layer()
        self.fan_in_fan_out = isinstance(base, Conv1D)
        if self.fan_in_fan_out:
            self.in_features, self.out_features = base.weight.shape
        else:
            self.in_features, self.out_features = base.in_features, base.out_features

    def make_factors(self, name: str, r: int, device: torch.device, dtype: torch.dtype) -> None:
        """A (r, inputs) and B (outputs, r), each in a linear layer, as PEFT has them."""
        put(self.lora_A, name, empty_linear(self.in_features, r, device, dtype))
        put(self.lora_B, name, empty_linear(r, self.out_features, device, dtype))

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of both layers."""
        return weight_of(self.lora_A[name]), weight_of(self.lora_B[name])

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, or its transpose."""
        return weight.T if self.fan_in_fan_out else weight

    def unmatrix(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """The matrix, or its transpose."""
        return matrix_OI.T if self.fan_in_fan_out else matrix_OI

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As every LoRA layer's; in one operation where one plain adapter is on one plain layer."""
        weights = None if args or kwargs else self._plain_weights(x)
        if weights is None:
            return super().forward(x, *args, **kwargs)
        name = self._active_adapter[0]
        dropout: Any = _inside(self, "lora_dropout", name)
        share = dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0
        scale_O = self.lora_variant[name].output_scale(self, name)
        if scale_O is not None:
            return super().forward(x) if share else _scaled(x, weights, scale_O)
        if share or torch.is_grad_enabled() or x.dtype != weights.A_RI.dtype:
            return fused(x, weights, share)
        return without_gradient(x, weights)

    def _plain_weights(self, x: torch.Tensor) -> Weights | None:
        """What the fused operations take, or None where they would not give what `LoraLayer.forward` gives."""
        name = self._active_adapter[0] if len(self._active_adapter) == 1 else ""
        if name not in self.r or self._disable_adapters or self.merged_adapters:
            return None
        if not self.lora_variant[name].acts_everywhere:
            return None
        base = _inside(self, "base_layer")
        A, B = _inside(self, "lora_A", name), _inside(self, "lora_B", name)
        # Subclasses of nn.Linear (quantized ones) may do more than W x + b, and so may hooks.
        if type(base) is not nn.Linear or not (
            is_called_plainly(base)
            and is_called_plainly(A)
            and is_called_plainly(B)
            and is_called_plainly(_inside(self, "lora_dropout", name))
        ):
            return None
        weights = Weights(base.weight, base.bias, A.weight, B.weight, self.scaling[name])
        return weights if _fit(x, weights) else None

    def base_product(self, x: torch.Tensor) -> torch.Tensor:
        """W x."""
        return F.linear(x, self.matrix(base_weight(self.get_base_layer())).to(x.dtype))

    def update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """B A x, in the wider of the two dtypes."""
        A_RI, B_OR = self.factors(name)
        dtype = torch.promote_types(x.dtype, A_RI.dtype)
        if dtype != A_RI.dtype or dtype != B_OR.dtype:
            return F.linear(F.linear(x.to(dtype), A_RI.to(dtype)), B_OR.to(dtype))
        # By calling the modules, since people hang hooks on them.
        updated: torch.Tensor = self.lora_B[name](self.lora_A[name](x.to(dtype)))
        return updated

    def per_output(self, values_O: torch.Tensor) -> torch.Tensor:
        """As it is: outputs are the last dimension."""
        return values_O


def _scaled(x: torch.Tensor, weights: Weights, scale_O: torch.Tensor) -> torch.Tensor:
    """DoRA's output: the plain one without the bias, scaled; only it, x and the rank-R product are kept."""
    plain = fused(x, weights._replace(bias_O=None))
    scaled = (plain * scale_O).to(plain.dtype)
    return scaled if weights.bias_O is None else scaled + weights.bias_O


def _inside(module: Any, *names: str) -> Any:
    """A module in it, past nn.Module's own look-up: for a single token that costs as much as the products."""
    for name in names:
        module = module.__dict__["_modules"][name]
    return module


def _fit(x: torch.Tensor, weights: Weights) -> bool:
    """Whether the fused operations may take these: a frozen base of x's dtype, under an adapter no narrower."""
    W_OI, bias_O, A_RI, B_OR, _ = weights
    trains_base = W_OI.requires_grad or (bias_O is not None and bias_O.requires_grad)
    if torch.is_grad_enabled() and trains_base:
        return False
    if x.dtype != W_OI.dtype or A_RI.dtype != B_OR.dtype:
        return False
    wide = A_RI.dtype == torch.promote_types(x.dtype, A_RI.dtype)
    return (
        wide
        and x.device == W_OI.device == A_RI.device
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        # vmap, jvp and the like want operations that they can see into.
        and torch._C._functorch.maybe_current_level() is None  # noqa: SLF001  (PyTorch has no public way to ask)
    )


def empty_linear(inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A linear layer whose weight is not initialised, which its maker does anyway."""
    layer = blank(nn.Linear, 1, 1)
    layer.__dict__.update(in_features=inputs, out_features=outputs)
    weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype))
    layer._parameters.update(weight=weight, bias=None)  # noqa: SLF001  (past `__setattr__`, as above)
    return layer
