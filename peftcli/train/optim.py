"""The optimizers of TrainingArguments, by name, over the parameters that train."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.optim import Optimizer

from peftcli.errors import RecipeError, did_you_mean
from peftcli.peft.optimizers import EMBEDDING_RATE, Rates
from peftcli.recipe.training import Training


@dataclass(frozen=True)
class Choice:
    """An optimizer class, `module:name`, and how the recipe's settings become its arguments."""

    where: str
    arguments: Callable[[Training], dict[str, Any]]
    fixed: tuple[tuple[str, Any], ...] = ()


def _adam(settings: Training) -> dict[str, Any]:
    return {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon}


def _lion(settings: Training) -> dict[str, Any]:
    return {"betas": (settings.adam_beta1, settings.adam_beta2)}


def _ademamix(settings: Training) -> dict[str, Any]:
    # The slow average's beta3 and its weight: Pagliardini et al., "The AdEMAMix Optimizer", 2024,
    # arXiv:2409.03137.
    betas = (settings.adam_beta1, settings.adam_beta2, 0.9999)
    return {"betas": betas, "alpha": 5.0, "eps": settings.adam_epsilon}


def _plain(settings: Training) -> dict[str, Any]:  # noqa: ARG001 (one signature for all)
    return {}


def _bits(name: str, arguments: Callable[[Training], dict[str, Any]], bits: int, *, paged: bool) -> Choice:
    fixed: tuple[tuple[str, Any], ...] = (("optim_bits", bits),)
    if name != "RMSprop":
        fixed += (("is_paged", paged),)
    return Choice(f"bitsandbytes.optim:{name}", arguments, fixed)


OPTIMIZERS = {
    "adamw_torch": Choice("torch.optim:AdamW", _adam),
    "adamw_torch_fused": Choice("torch.optim:AdamW", _adam, (("fused", True),)),
    # The recipe's own schedule decides the learning rate, so Adafactor's relative steps are off.
    "adafactor": Choice(
        "transformers.optimization:Adafactor", _plain, (("scale_parameter", False), ("relative_step", False))
    ),
    "sgd": Choice("torch.optim:SGD", _plain),
    "adagrad": Choice("torch.optim:Adagrad", _plain),
    "rmsprop": Choice("torch.optim:RMSprop", _plain),
    "adamw_bnb_8bit": _bits("AdamW", _adam, 8, paged=False),
    "adamw_8bit": _bits("AdamW", _adam, 8, paged=False),
    "paged_adamw_32bit": _bits("AdamW", _adam, 32, paged=True),
    "paged_adamw_8bit": _bits("AdamW", _adam, 8, paged=True),
    "lion_32bit": _bits("Lion", _lion, 32, paged=False),
    "lion_8bit": _bits("Lion", _lion, 8, paged=False),
    "paged_lion_32bit": _bits("Lion", _lion, 32, paged=True),
    "paged_lion_8bit": _bits("Lion", _lion, 8, paged=True),
    "ademamix": _bits("AdEMAMix", _ademamix, 32, paged=False),
    "ademamix_8bit": _bits("AdEMAMix", _ademamix, 8, paged=False),
    "paged_ademamix_32bit": _bits("AdEMAMix", _ademamix, 32, paged=True),
    "paged_ademamix_8bit": _bits("AdEMAMix", _ademamix, 8, paged=True),
    "rmsprop_bnb": _bits("RMSprop", _plain, 32, paged=False),
    "rmsprop_bnb_32bit": _bits("RMSprop", _plain, 32, paged=False),
    "rmsprop_bnb_8bit": _bits("RMSprop", _plain, 8, paged=False),
}


# How many moments bitsandbytes' optimizers keep of each weight.
_MOMENTS = {"AdamW": 2, "Lion": 1, "AdEMAMix": 3, "RMSprop": 1}


def stand_in(settings: Training) -> tuple[Training, float]:
    """The settings with an optimizer that takes any tensors, and how much state the recipe's has beside that one's.

    For a plan of memory: bitsandbytes' own kernels want real weights on a GPU.
    """
    choice = OPTIMIZERS.get(settings.optim)
    module, _, name = choice.where.partition(":") if choice else ("", "", "")
    if choice is None or not module.startswith("bitsandbytes"):
        return settings, 1.0
    bits = dict(choice.fixed)["optim_bits"]
    plain = settings.model_copy(update={"optim": "adamw_torch", "optim_args": None})
    return plain, _MOMENTS[name] * bits / (_MOMENTS["AdamW"] * 32)


def build_optimizer(model: nn.Module, settings: Training) -> Optimizer:
    """The recipe's optimizer over the trainable parameters of `model`.

    Raises:
        RecipeError: for a name, an argument or a combination that cannot be had.
    """
    kind = _class(settings.optim)
    choice = OPTIMIZERS[settings.optim]
    arguments = choice.arguments(settings) | dict(choice.fixed)
    arguments |= _own_arguments(settings, kind, arguments)
    groups = parameter_groups(model, settings.weight_decay, _rates(model, settings))
    try:
        optimizer: Optimizer = kind(groups, lr=settings.learning_rate, **arguments)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise RecipeError(f"training.optim: {settings.optim} refuses its arguments: {problem}") from problem
    return optimizer


def _rates(model: nn.Module, settings: Training) -> Rates | None:
    """LoRA+'s learning rates, where the recipe asks for them."""
    lr, ratio, embedding = settings.learning_rate, settings.loraplus_lr_ratio, settings.loraplus_lr_embedding
    if ratio is None:
        return None
    if not any("lora_B" in name for name, parameter in model.named_parameters() if parameter.requires_grad):
        raise RecipeError(
            "training.loraplus_lr_ratio: LoRA+ trains LoRA's B faster than its A, and this adapter has no lora_B; "
            "leave it out"
        )
    return Rates(lr, lr * ratio, EMBEDDING_RATE if embedding is None else embedding)


def parameter_groups(
    model: nn.Module, weight_decay: float, rates: Rates | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters, those that decay apart from those that never do (biases and norms).

    With `rates` (LoRA+), those that learn faster or slower are apart as well, after those of the recipe's own rate.
    """
    norms = {
        name
        for name, module in model.named_modules()
        if re.search(r"Norm(\d+d)?$", type(module).__name__) is not None
    }
    kinds = ("plain", "faster", "embedding") if rates else ("plain",)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (kind, decays): [] for kind in kinds for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = name.rpartition(".")[0] in norms or _never_decays(name)
            groups[rates.kind(name, parameter) if rates else "plain", not spared].append(parameter)
    if not any(groups.values()):
        raise RecipeError("nothing to train: no parameter of the model requires a gradient; check adapter")
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr": getattr(rates, kind)} if rates else {})
        for (kind, decays), members in groups.items()
        if members
    ]


def _never_decays(name: str) -> bool:
    parts = name.lower().split(".")
    return any("bias" in part or re.search(r"norm\d*$", part) for part in parts)


def _class(name: str) -> Any:
    if name not in OPTIMIZERS:
        raise RecipeError(f"training.optim: unknown optimizer {name!r}; {did_you_mean(name, OPTIMIZERS)}")
    module, _, attribute = OPTIMIZERS[name].where.partition(":")
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise RecipeError(
            f"training.optim: {name} needs the package {package}; install peftcli[quantization], or take "
            "adamw_torch_fused"
        )
    return getattr(import_module(module), attribute)


def _own_arguments(settings: Training, kind: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """`optim_args`, checked against the optimizer's signature; beta1, beta2, beta3 fill `betas`."""
    given = parse_optim_args(settings.optim_args)
    betas = list(defaults.get("betas", ()))
    for number in range(len(betas)):
        betas[number] = given.pop(f"beta{number + 1}", betas[number])
    if "betas" in given:
        raise RecipeError("training.optim_args: write betas one by one: beta1=0.9,beta2=0.95")
    known = set(inspect.signature(kind).parameters) - {"params", "lr", "self"}
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise RecipeError(f"training.optim_args: {settings.optim} takes no {name!r}; {hint}")
    if "weight_decay" in given:
        raise RecipeError("training.optim_args: set weight_decay as training.weight_decay")
    return given | ({"betas": tuple(betas)} if betas else {})


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """`k=v,k=v` as a dictionary, with numbers, true/false and none as such.

    Raises:
        RecipeError: for a part that is not `k=v`.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise RecipeError(
                f"training.optim_args: {part!r} is not name=value; write e.g. momentum=0.9,nesterov=true"
            )
        if name in arguments:
            raise RecipeError(f"training.optim_args: {name} is given twice")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
