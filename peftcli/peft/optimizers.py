"""Optimizers made for LoRA: LoRA+ (B learns faster than A) and LoRA-FA (A is frozen).

Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024, arXiv:2402.12354.
Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", 2023,
arXiv:2308.03303.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

from peftcli.adapters.base import AdapterLayer
from peftcli.errors import AdapterError
from peftcli.peft.model import PeftModel

# As in PEFT and the authors' code.
EMBEDDING_RATE = 1e-6


class Rates(NamedTuple):
    """LoRA+'s three learning rates."""

    # A, and whatever else is a matrix.
    plain: float
    # B, and as in the authors' code what is a vector (biases, norms).
    faster: float
    # Adapters on embeddings.
    embedding: float

    @staticmethod
    def kind(name: str, parameter: nn.Parameter) -> str:
        """Which of the rates a parameter has."""
        if "lora_embedding_" in name:
            return "embedding"
        return "faster" if "lora_B" in name or parameter.ndim == 1 else "plain"


def create_loraplus_optimizer(
    model: PeftModel, optimizer_cls: type[Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Optimizer:
    """An optimizer that trains B faster than A.

    Args:
        model: a model with a LoRA adapter.
        optimizer_cls: which optimizer.
        lr: the learning rate of A.
        loraplus_lr_ratio: how many times faster B is trained; with a ratio above 1, choose `lr` lower than LoRA's.
        **kwargs: the optimizer's own arguments, and `loraplus_weight_decay` (default 0) and `loraplus_lr_embedding`
            (the learning rate of adapters on embeddings, default 1e-6).
    """
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    rates = Rates(lr, lr * loraplus_lr_ratio, kwargs.pop("loraplus_lr_embedding", EMBEDDING_RATE))
    decayed = {name for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS) if "bias" not in name}
    # PEFT's groups in PEFT's order, whether or not anything is in them.
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        ("plain", True): [],
        ("embedding", True): [],
        ("faster", True): [],
        ("faster", False): [],
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = rates.kind(name, parameter)
            groups[kind, kind != "faster" or name in decayed].append(parameter)
    made = [
        {"params": members, "lr": getattr(rates, kind), "weight_decay": decay if decays else 0.0}
        for (kind, decays), members in groups.items()
    ]
    kind_of_optimizer: Any = optimizer_cls
    optimizer: Optimizer = kind_of_optimizer(made, lr=lr, **kwargs)
    if "8bit" in optimizer_cls.__name__:
        _keep_embeddings_wide(model)
    return optimizer


def _keep_embeddings_wide(model: nn.Module) -> None:
    """In 8 bits the state of embeddings is unstable: bitsandbytes is told to keep it in 32."""
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})


class _Frozen(NamedTuple):
    """The frozen A beside a B, and the factor of their product."""

    down: torch.Tensor
    scaling: float


class LoraFAOptimizer(Optimizer):
    """AdamW for B alone, with the gradient that brings B A nearest to where full fine-tuning would take the weight.

    That is (B's gradient) (A Aᵀ)⁻¹ / scaling². What has no frozen A beside it is trained by AdamW as it is.
    """

    def __init__(  # noqa: PLR0917  (PEFT's signature)
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        *,
        frozen: dict[nn.Parameter, _Frozen] | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "correct_bias": correct_bias,
            },
        )
        self._frozen = frozen or {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, self._gradient(parameter), group)
        return loss

    def _gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        frozen = self._frozen.get(parameter)
        if frozen is None:
            return gradient
        # Kernels are flat here. In float32 at least: bfloat16 has no inverse.
        down = frozen.down.flatten(1)
        down = down.to(torch.promote_types(down.dtype, torch.float32))
        gram = down @ down.T + 1e-8 * torch.eye(len(down), dtype=down.dtype, device=down.device)
        projected: torch.Tensor = gradient.flatten(1).to(down.dtype) @ torch.linalg.pinv(gram)
        return (projected / frozen.scaling**2).view_as(gradient).to(gradient.dtype)

    def _move(self, parameter: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Adam's step, then the decay (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = group["lr"]
        if group["correct_bias"]:
            rate *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def create_lorafa_optimizer(  # noqa: PLR0917  (PEFT's signature)
    model: PeftModel,
    r: int,  # noqa: ARG001  (PEFT's: the layers know their own, and their factors)
    lora_alpha: float,  # noqa: ARG001
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> Optimizer:
    """LoRA-FA's optimizer for the adapters in use; their A is frozen.

    Args:
        model: a model with a LoRA adapter.
        r: not used: each layer's own counts.
        lora_alpha: not used, likewise.
        lr: the learning rate.
        weight_decay: AdamW's.
        use_rslora: PEFT's older argument; it may only say what the adapters' configs say.

    Raises:
        AdapterError: where the adapters have no A and B, or their configs say otherwise of `use_rslora`.
    """
    for name in model.active_adapters:
        said = getattr(model.peft_config[name], "use_rslora", False)
        if use_rslora not in (None, said):
            raise AdapterError(f"use_rslora is {said} for the adapter {name!r}; set it in LoraConfig alone")
    frozen: dict[nn.Parameter, _Frozen] = {}
    for down, up, scaling in _factors(model):
        down.requires_grad_(False)
        frozen[up] = _Frozen(down, scaling)
    if not frozen:
        raise AdapterError("LoRA-FA trains LoRA's B beside a frozen A, and the adapters in use have none")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return LoraFAOptimizer(trained, lr=lr, weight_decay=weight_decay, frozen=frozen)


def _factors(model: PeftModel) -> Iterator[tuple[nn.Parameter, nn.Parameter, float]]:
    """A, B and the factor of each layer's active LoRA adapters.

    Not of embeddings, whose A starts at zero: frozen, it would stay there. AdaLoRA's, which are bare, are others.
    """
    for module in model.modules():
        layer: Any = module
        if isinstance(module, AdapterLayer) and isinstance(getattr(layer, "lora_A", None), nn.ModuleDict):
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
                    if module.parameter and len(down) != layer.r[name]:
                        raise AdapterError(
                            "LoRA-FA takes one pair of A and B a layer, and stacked parameters have several; "
                            "leave target_parameters out"
                        )
                    yield down, up, layer.scaling[name]
