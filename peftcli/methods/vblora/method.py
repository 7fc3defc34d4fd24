"""VB-LoRA as the engine sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcli.adapters.additive import features
from peftcli.adapters.base import Site
from peftcli.adapters.method import AddOptions, LayerMethod, bare, settle_fan_in_fan_out
from peftcli.adapters.walk import stack, walk
from peftcli.adapters.weights import adapter_dtype, weight_of
from peftcli.errors import AdapterError
from peftcli.methods.vblora import packing
from peftcli.methods.vblora.config import VBLoRAConfig
from peftcli.methods.vblora.layer import Linear


def get_nb_savable_parameters(tuner: Any, adapter: str = "default") -> tuple[int, int]:
    """How many numbers of 32 bits an adapter's file holds of the method's own, and how many of other weights."""
    config = tuner.peft_config[adapter]
    logits = sum(
        item.tensor.numel() for _, layer in _layers(tuner, adapter) for item in layer.adapter_tensors(adapter)
    )
    bank = tuner.vblora_vector_bank[adapter]
    trained = sum(parameter.numel() for parameter in tuner.parameters() if parameter.requires_grad)
    own = logits + bank.numel()
    others = trained - own if bank.requires_grad else trained
    if config.save_only_topk_weights:
        pieces = logits // config.num_vectors
        index_share = packing.index_dtype(config.num_vectors).itemsize / 4
        own = int(bank.numel() + pieces * (config.topk - 1) + pieces * config.topk * index_share)
    return own, others


def print_savable_parameters(tuner: Any) -> None:
    """Prints those numbers, in PEFT's words."""
    own, others = get_nb_savable_parameters(tuner)
    print(
        f"VB-LoRA params to-be-saved (float32-equivalent): {own:,d} "
        f"|| total params to-be-saved: {own + others:,d}"
    )


class VBLoRAMethod(LayerMethod):
    """VB-LoRA."""

    prefix = "vblora_"
    layer = Linear
    kinds: ClassVar = {nn.Linear: Linear, Conv1D: Linear}
    shared: ClassVar = {"vblora_vector_bank": nn.ParameterDict}
    operations: ClassVar = {
        "get_nb_savable_parameters": get_nb_savable_parameters,
        "print_savable_parameters": print_savable_parameters,
    }

    def resolve(
        self,
        sites: Sequence[Site],
        config: VBLoRAConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,  # noqa: ARG002
    ) -> None:
        """Checks that vectors fit the layers; sets fan_in_fan_out."""
        settle_fan_in_fan_out(sites, config)
        for site in sites:
            inputs, outputs = features(bare(site.module))
            if inputs % config.vector_length or outputs % config.vector_length:
                raise AdapterError(
                    f"{site.name} has {inputs} inputs and {outputs} outputs, which vector_length "
                    f"{config.vector_length} does not divide; choose one that divides both"
                )

    def share(
        self, tuner: Any, sites: Sequence[Site], adapter_name: str, config: VBLoRAConfig, options: AddOptions
    ) -> None:
        """Makes the bank."""
        base = bare(sites[0].module)
        bank_NL = torch.empty(
            config.num_vectors,
            config.vector_length,
            dtype=adapter_dtype(base, autocast=options.autocast_adapter_dtype),
            device=weight_of(base).device,
        )
        bound = config.init_vector_bank_bound
        tuner.vblora_vector_bank[adapter_name] = nn.Parameter(bank_NL.uniform_(-bound, bound))

    def packed(
        self,
        state: dict[str, torch.Tensor],
        config: VBLoRAConfig,
        prefix: str,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Only what is mixed of each mixture, where the config wants that."""
        return packing.packed(state, config.topk) if config.save_only_topk_weights else state

    def unpacked(
        self,
        state: dict[str, torch.Tensor],
        config: VBLoRAConfig,
        prefix: str,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Logits, whatever the file holds."""
        return packing.unpacked(state, config.num_vectors)

    def training_state(self, tuner: Any, adapter_name: str) -> dict[str, Any]:
        """The logits, where the file does not hold them."""
        if not tuner.peft_config[adapter_name].save_only_topk_weights:
            return {}
        return {
            name: [item.tensor.detach() for item in layer.adapter_tensors(adapter_name)]
            for name, layer in _layers(tuner, adapter_name)
        }

    def load_training_state(self, tuner: Any, adapter_name: str, state: Mapping[str, Any]) -> None:
        """As they were there."""
        layers = dict(_layers(tuner, adapter_name))
        with torch.no_grad():
            for name, saved in state.items():
                for item, logits in zip(layers[name].adapter_tensors(adapter_name), saved, strict=True):
                    item.tensor.copy_(logits)


def _layers(tuner: Any, adapter_name: str) -> Iterator[tuple[str, Linear]]:
    """The layers that have an adapter, and the names of what they are around."""
    for site in walk(tuner.model):
        for layer in stack(site.module):
            if isinstance(layer, Linear) and adapter_name in layer.vblora_logits_A:
                yield site.name, layer
