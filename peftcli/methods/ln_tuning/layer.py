"""LN tuning on a module: a trained copy stands in for it. Meant for norms, but any module can be trained so.

Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", 2023, arXiv:2312.11420.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from peftcli.adapters.base import AdapterLayer, SavedTensor, owner_of
from peftcli.adapters.weights import HALF
from peftcli.errors import AdapterError


class LNTuningLayer(AdapterLayer):
    """A module with trained copies of it, of which one at a time takes its place."""

    adapter_layer_names = ("ln_tuning_layers",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.ln_tuning_layers = nn.ModuleDict()

    def add(self, name: str, *, autocast: bool) -> None:
        """Makes a new copy of the module as it is without adapters; in float32, which training needs, if `autocast`."""
        copied = copy.deepcopy(self.get_base_layer())
        for key, parameter in copied.named_parameters():
            original = self._originals.get(key, parameter).detach()
            wide = autocast and original.dtype in HALF
            owner, child = owner_of(copied, key)
            setattr(owner, child, nn.Parameter(original.float() if wide else original.clone()))
        self.ln_tuning_layers[name] = copied

    def adapter_tensors(self, name: str) -> Iterator[SavedTensor]:
        """As every layer's; for what lies deeper in the copy, PEFT's keys keep the adapter's name."""
        for item in super().adapter_tensors(name):
            is_deep = item.saved.count(".") > 1
            yield item._replace(saved=item.live) if is_deep else item

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The active copy's output, with its weights rounded to the dtype that the base layer computes with."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        names = [name for name in self._active_adapter if name in self.ln_tuning_layers]
        if self._disable_adapters or self.merged_adapters or not names:
            return self.base_layer(x, *args, **kwargs)
        _check_single(names)
        copied = self.ln_tuning_layers[names[0]]
        dtypes = [parameter.dtype for parameter in self.base_layer.parameters()]
        own = dict(copied.named_parameters())
        rounded = {key: own[key].to(dtype) for key, dtype in zip(own, dtypes, strict=True)}
        if all(rounded[key] is own[key] for key in own):
            return copied(x, *args, **kwargs)
        return functional_call(copied, rounded, (x, *args), kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """As every layer's, but of one adapter; it takes the place of one that is merged."""
        wanted = self._active_adapter if adapter_names is None else adapter_names
        _check_single([name for name in wanted if name in self.ln_tuning_layers])
        super().merge(safe_merge, adapter_names)

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The last one's weights."""
        return {
            key: tensor.detach().clone()
            for key, tensor in self.ln_tuning_layers[names[-1]].named_parameters()
        }

    def __repr__(self) -> str:
        return f"ln_tuning.{super().__repr__()}"


def _check_single(names: Sequence[str]) -> None:
    if len(names) > 1:
        raise AdapterError(
            f"adapters of LN_TUNING replace one another: {', '.join(names)} cannot be used together; set one of them"
        )
