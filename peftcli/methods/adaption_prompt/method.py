"""LLaMA-adapter as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention as GPT2Base
from transformers.models.llama.modeling_llama import LlamaAttention as LlamaBase
from transformers.models.mistral.modeling_mistral import MistralAttention as MistralBase

from peftcli.adapters.base import AdapterLayer, Site
from peftcli.adapters.method import AddOptions, LayerMethod
from peftcli.adapters.walk import walk
from peftcli.adapters.weights import HALF
from peftcli.errors import AdapterError
from peftcli.methods.adaption_prompt.config import ATTENTION, AdaptionPromptConfig
from peftcli.methods.adaption_prompt.layer import AdaptedAttention, GPT2Attention, LlamaAttention


class AdaptionPromptMethod(LayerMethod):
    """LLaMA-adapter."""

    prefix = "adaption_prompt_"
    layer = AdaptedAttention
    kinds: ClassVar = {LlamaBase: LlamaAttention, MistralBase: LlamaAttention, GPT2Base: GPT2Attention}

    def aim(self, config: Any, model: nn.Module) -> None:
        """The attention of the upper layers, each by its whole name.

        Raises:
            AdapterError: for an architecture without a default, or one with fewer layers.
        """
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        name = config.target_modules or ATTENTION.get(model_type)
        if name is None:
            raise AdapterError(
                f"{config.peft_type} knows the attention of {', '.join(ATTENTION)}, and not of {model_type}"
            )
        found = [site.name for site in walk(model) if site.name.endswith(f".{name}")]
        if len(found) < config.adapter_layers:
            raise AdapterError(
                f"adapter_layers is {config.adapter_layers}, and {len(found)} layers have a {name!r}"
            )
        config.target_modules = found[-config.adapter_layers :]

    def resolve(
        self,
        sites: Sequence[Site],
        config: AdaptionPromptConfig,
        others: Sequence[Any],  # noqa: ARG002
        strict: bool,  # noqa: ARG002
    ) -> None:
        """The file names what they are called in their layers."""
        config.target_modules = sites[0].child

    def add(
        self,
        layer: AdapterLayer,
        site: Site,  # noqa: ARG002
        adapter_name: str,
        config: AdaptionPromptConfig,
        options: AddOptions,
    ) -> None:
        """Makes a new adapter."""
        assert isinstance(layer, AdaptedAttention)
        assert config.adapter_len
        base: Any = layer.get_base_layer()
        weight = next(parameter for parameter in base.parameters())
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        if options.autocast_adapter_dtype and dtype in HALF:
            dtype = torch.float32
        layer.add(adapter_name, config.adapter_len, base.config.hidden_size, dtype)
