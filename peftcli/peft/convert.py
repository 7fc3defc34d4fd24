"""An adapter of any method as a LoRA adapter, which more programs take: its nearest, of a rank that is asked for.

What the adapter adds to a weight is what merging makes of it, less the weight; its largest singular values and their
vectors are LoRA's factors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.state import adapter_state
from peftcli.adapters.targets import shortest
from peftcli.adapters.walk import stack, walk
from peftcli.adapters.weights import base_weight
from peftcli.errors import AdapterError
from peftcli.peft.storage import base_of, save_weights
from peftcli.registry import METHODS, resolve


def convert_to_lora(
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,  # noqa: ARG001  (PEFT's signature)
    compile_kwargs: Any = None,  # noqa: ARG001  (as above)
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The config and the tensors of a LoRA adapter that does nearly what an adapter does. The model stays as it is.

    Args:
        model: a PeftModel, or a model with adapters injected.
        rank: a whole number; or, between 0 and 1, the share of the squared singular values that each layer's own rank
            must hold.
        adapter_name: the adapter to convert.
        progressbar: has no effect.
        compile_kwargs: has no effect.

    Raises:
        AdapterError: where the adapter changes more than weights of linear layers, or the rank is impossible.
    """
    if isinstance(rank, bool) or rank <= 0 or (isinstance(rank, float) and rank > 1):
        raise AdapterError(f"rank must be a whole number, or a share above 0 and at most 1, not {rank}")
    base, prefix = base_of(model)
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, AdaptedModel):
        tuner = AdaptedModel.around(base)
    tuner.method_of(adapter_name)
    config: Any = tuner.peft_config[adapter_name]
    if getattr(config, "bias", "none") != "none":
        raise AdapterError(
            "the adapter trained biases, for which LoRA's factors have no place; it has bias: none only"
        )
    state: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for site in walk(base):
        for layer in stack(site.module):
            if adapter_name not in layer.adapter_names():
                continue
            A_RI, B_OR = _factors(site.name, layer, adapter_name, rank)
            if len(A_RI):
                ranks[site.name] = len(A_RI)
                state |= {
                    f"{prefix}{site.name}.lora_A.weight": A_RI,
                    f"{prefix}{site.name}.lora_B.weight": B_OR,
                }
    state |= adapter_state(base, adapter_name, config, prefix).whole
    return _config(base, config, ranks, rank), state


def save_as_lora(  # noqa: PLR0917  (PEFT's signature)
    path: str | Path,
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Any = None,
) -> None:
    """Writes the LoRA adapter that `convert_to_lora` makes into a folder."""
    config, state = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    config.inference_mode = True
    save_weights(Path(path), state)
    config.save_pretrained(path)


@torch.no_grad()
def _factors(
    name: str, layer: AdapterLayer, adapter_name: str, rank: float
) -> tuple[torch.Tensor, torch.Tensor]:
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D):
        raise AdapterError(f"{name} is a {type(base).__name__}; only adapters on linear layers are converted")
    if layer.merged_adapters:
        raise AdapterError("adapters are merged into the model; call unmerge_adapter before")
    merged = layer.merge_tensors([adapter_name])
    if merged.keys() != {"weight"}:
        raise AdapterError(f"{name}: the adapter changes the bias as well, for which LoRA has no place")
    weight = base_weight(base)
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    delta = merged["weight"] - weight.to(merged["weight"].dtype)
    delta_OI = delta.T if isinstance(base, Conv1D) else delta
    U_OK, S_K, V_KI = torch.linalg.svd(delta_OI, full_matrices=False)
    kept = rank if isinstance(rank, int) else _enough(S_K, rank)
    if kept > len(S_K):
        raise AdapterError(f"{name} has room for a rank of {len(S_K)}, not {kept}")
    return V_KI[:kept].to(dtype).contiguous(), (U_OK[:, :kept] * S_K[:kept]).to(dtype).contiguous()


def _enough(S_K: torch.Tensor, share: float) -> int:
    """How many of the largest singular values hold this share of their squares; none where all are zero."""
    energy = S_K.square().cumsum(0)
    return 0 if energy[-1] == 0 else int((energy < share * energy[-1]).sum()) + 1


def _config(base: nn.Module, config: Any, ranks: dict[str, int], rank: float) -> Any:
    if not ranks:
        raise AdapterError("the adapter changes no weight, so nothing is left to convert")
    usual = rank if isinstance(rank, int) else max(ranks.values())
    other = {name: own for name, own in ranks.items() if own != usual}
    lora = resolve(METHODS, "LORA", what="peft_type")
    return lora(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        r=usual,
        lora_alpha=usual,
        rank_pattern=dict(other),
        alpha_pattern=dict(other),
        target_modules=shortest(set(ranks), [site.name for site in walk(base)]),
        modules_to_save=getattr(config, "modules_to_save", None),
    )
