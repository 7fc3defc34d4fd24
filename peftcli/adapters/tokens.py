"""Single tokens, trained: their rows take the place of the base's in an embedding, or in an output head.

Rows are replaced and not added to, so that an adapter means the same on a base whose new rows were drawn at random.
The base's own output is made, and only what belongs to trained tokens is put into it: unlike PEFT's, no copy of the
whole matrix is made, neither forward nor backward. Suffixes: K trained tokens, V vocabulary, D dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peftcli.adapters.base import AdapterLayer, rows_of
from peftcli.adapters.buffers import BufferDict
from peftcli.adapters.weights import adapter_dtype, base_weight, is_quantized, weight_of
from peftcli.errors import AdapterError


class TrainableTokensLayer(AdapterLayer):
    """A layer whose weight (V, D) has a row for each token, with trained rows for some of them."""

    adapter_layer_names = ("trainable_tokens_delta",)
    other_param_names = ("token_indices", "token_rows", "leaders")
    takes_adapter_names = True

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.trainable_tokens_delta = nn.ParameterDict()
        self.token_indices: dict[str, list[int]] = {}
        # The same as tensors, which move with the model.
        self.token_rows = BufferDict()
        # The layers whose rows these are, where the weight is shared with them: see `tie`.
        self.leaders: dict[str, TrainableTokensLayer] = {}

    @abstractmethod
    def replaced(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The base layer's result for `x`, with what an adapter's tokens give; `result` may be changed in place."""

    def add(self, name: str, indices: Sequence[int], *, equal: bool, autocast: bool) -> None:
        """Makes a new adapter, whose rows are the base's or random."""
        base = self.get_base_layer()
        original = self._originals.get("weight")
        weight = base_weight(base) if original is None else original.detach()
        rows_K = torch.tensor(indices, device=weight.device)
        start_KD = weight[rows_K].to(adapter_dtype(base, autocast=autocast))
        self.trainable_tokens_delta[name] = nn.Parameter(start_KD if equal else torch.randn_like(start_KD))
        self.token_indices[name], self.token_rows[name] = list(indices), rows_K

    def tie(self, name: str, leader: TrainableTokensLayer) -> None:
        """Lets an adapter's rows be those of another layer, whose base layer has the same weight."""
        self.trainable_tokens_delta[name] = leader.trainable_tokens_delta[name]
        self.leaders[name] = leader

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, with the rows in it: some models make their logits of an embedding's weight."""
        weight_VD = weight_of(self.get_base_layer())
        if self._disable_adapters or self.merged_adapters or is_quantized(self.get_base_layer()):
            return weight_VD
        for name in self._checked(self._active_adapter):
            rows_KD = self.trainable_tokens_delta[name].to(weight_VD)
            weight_VD = weight_VD.index_copy(0, self.token_rows[name], rows_KD)
        return weight_VD

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """The base layer's output, with what the active adapters' tokens give instead."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged_adapters:
            return result
        if adapter_names is not None:
            for name, rows in rows_of(adapter_names, x).items():
                if name in self.token_indices:
                    result[rows] = self.replaced(name, x[rows], result[rows])
            return result
        for name in self._checked(self._active_adapter):
            result = self.replaced(name, x, result)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """As every layer's; where the weight was one with another layer's, and all rows are, it stays one.

        Raises:
            AdapterError: as every layer's, and where two of the adapters train the same token.
        """
        wanted = self._active_adapter if adapter_names is None else adapter_names
        self._checked([*self.merged_adapters, *wanted])
        super().merge(safe_merge, adapter_names)
        leaders = {self.leaders.get(name) for name in self.merged_adapters}
        leader = leaders.pop() if len(leaders) == 1 else None
        if leader is None:
            return
        leader.merge(safe_merge, self.merged_adapters)
        if leader.merged_adapters == self.merged_adapters:
            self.get_base_layer().weight = leader.get_base_layer().weight

    def merge_tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The weight with the rows in it; what is only put in place needs no wider dtype."""
        merged_VD = base_weight(self.get_base_layer()).clone()
        for name in names:
            merged_VD.index_copy_(
                0, self.token_rows[name], self.trainable_tokens_delta[name].detach().to(merged_VD)
            )
        return {"weight": merged_VD}

    def _checked(self, names: Sequence[str]) -> list[str]:
        """Those of the adapters that the layer has.

        Raises:
            AdapterError: where two of them train the same token.
        """
        own = [name for name in dict.fromkeys(names) if name in self.token_indices]
        trained: dict[int, str] = {}
        for name in own if len(own) > 1 else ():
            for token in self.token_indices[name]:
                if token in trained:
                    raise AdapterError(
                        f"token {token} is trained by {trained[token]} and by {name}; use one of them at a time"
                    )
                trained[token] = name
        return own

    def __getattr__(self, name: str) -> Any:
        """What this does not have, the base layer has: models ask embeddings for their sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def _get_name(self) -> str:
        return "TrainableTokensLayer"


class TokenEmbedding(TrainableTokensLayer):
    """An embedding of which some tokens are trained."""

    def replaced(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The rows of trained tokens, scaled as the base scales its own, and the base's of all others."""
        base: Any = self.get_base_layer()
        indices, delta_KD = self.token_indices[name], self.trainable_tokens_delta[name]
        sorted_K, order_K = self.token_rows[name].sort()
        place = torch.searchsorted(sorted_K, x.to(sorted_K.dtype)).clamp(max=len(indices) - 1)
        is_trained = sorted_K[place] == x
        # A row of zeros, after the last, for all other tokens.
        row = torch.where(is_trained, order_K[place], len(indices))
        embedded = F.embedding(
            row,
            F.pad(delta_KD, (0, 0, 0, 1)).to(result.dtype),
            padding_idx=indices.index(base.padding_idx) if base.padding_idx in indices else None,
            scale_grad_by_freq=base.scale_grad_by_freq,
        )
        scale = getattr(base, "embed_scale", 1.0)  # as Gemma and BART have it
        if isinstance(scale, torch.Tensor):
            scale = scale.to(result.dtype)
        return torch.where(is_trained.unsqueeze(-1), embedded * scale, result)


class TokenHead(TrainableTokensLayer):
    """A linear layer with an output for each token, of which some are trained."""

    def replaced(self, name: str, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The trained tokens' logits in the place of the base's. In place: logits are the largest tensor there is."""
        base: Any = self.get_base_layer()
        rows_K = self.token_rows[name]
        bias_K = None if base.bias is None else base.bias[rows_K]
        logits = F.linear(x, self.trainable_tokens_delta[name].to(x.dtype), bias_K)
        return result.index_copy_(-1, rows_K, logits.to(result.dtype))


# The type of module to the layer around it.
KINDS: Mapping[type[nn.Module], type[TrainableTokensLayer]] = {
    nn.Embedding: TokenEmbedding,
    nn.Linear: TokenHead,
}


class TrainableTokensWrapper(nn.Module):
    """A module of the base model whose tokens an adapter of another method trains (`trainable_token_indices`).

    The names are PEFT's: adapters hold the rows as `token_adapter.trainable_tokens_delta`.
    """

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        kind = next(kind for known, kind in KINDS.items() if isinstance(original_module, known))
        self.token_adapter = kind(original_module)

    @property
    def original_module(self) -> nn.Module:
        """The base model's own module."""
        return self.token_adapter.get_base_layer()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's."""
        return self.token_adapter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper does not have, the layer has, or the module in it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "token_adapter":
                raise
            return getattr(self.token_adapter, name)
