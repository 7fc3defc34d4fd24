"""LLaMA-adapter on attention: y = attention(x) + g · softmax(q k_Pᵀ / √D) v_P, with keys and values of a prompt P.

The gate g starts at zero, and the prompt's keys have no position. Shapes: B rows, T tokens, N virtual tokens, E hidden
numbers, H heads of D numbers.

Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention", 2023,
arXiv:2303.16199.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from peftcli.adapters.base import AdapterLayer
from peftcli.errors import AdapterError


class AdaptedAttention(AdapterLayer):
    """Attention with prompts beside it: `adaption_prompt` (1, N, E) and `adaption_gate` (1,) by adapter."""

    adapter_layer_names = ("adaption_prompt", "adaption_gate")
    # The attention; its kind is not known here.
    model: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # PEFT's name for what is inside; `base_layer` finds it all the same.
        self.model = self._modules.pop("base_layer")
        self.adaption_prompt = nn.ParameterDict()
        self.adaption_gate = nn.ParameterDict()

    def __getattr__(self, name: str) -> Any:
        """`base_layer` is PEFT's `model`; models look into their attention for the rest (`layer_idx`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return self.model if name == "base_layer" else getattr(self.model, name)

    @abstractmethod
    def queries(self, x: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """The attention's own queries, (B, H, T, D), at their positions."""

    @abstractmethod
    def keys_and_values(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A prompt's, (1, H, N, D) each."""

    @abstractmethod
    def projected(self, mixed: torch.Tensor) -> torch.Tensor:
        """What is added to the attention's output, (B, T, E), of its heads' mixtures."""

    def add(self, name: str, tokens: int, width: int, dtype: torch.dtype) -> None:
        """Makes a new adapter: a random prompt, and a gate that is closed."""
        device = next(self.get_base_layer().parameters()).device
        prompt = torch.randn(1, tokens, width, device=device, dtype=dtype)
        self.adaption_prompt[name] = nn.Parameter(prompt)
        self.adaption_gate[name] = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **arguments: Any) -> Any:
        """The attention's outputs; the first has the prompts' part in it."""
        output, *others = self.model(hidden_states, *args, **arguments)
        names = [name for name in self._active_adapter if name in self.adaption_prompt]
        if self._disable_adapters or not names:
            return output, *others
        queries = self.queries(hidden_states, arguments)
        for name in names:
            output = output + self._part(name, queries)
        return output, *others

    def _part(self, name: str, queries: torch.Tensor) -> torch.Tensor:
        keys, values = self.keys_and_values(self.adaption_prompt[name].to(queries.dtype))
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        mixed = (self.adaption_gate[name] * shares).to(queries.dtype) @ values
        return self.projected(mixed.transpose(1, 2).flatten(2))

    def merge_tensors(self, names: Sequence[str]) -> NoReturn:
        """A prompt beside attention is no change of its weights.

        Raises:
            AdapterError: always.
        """
        raise AdapterError(f"{', '.join(names)}: prompts beside attention cannot be merged into its weights")

    def __repr__(self) -> str:
        return f"adaption_prompt.{super().__repr__()}"


class LlamaAttention(AdaptedAttention):
    """On the attention of Llama and Mistral; several heads of queries may share one of keys."""

    def queries(self, x: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Turned to their positions."""
        queries = self._heads(self.model.q_proj(x))
        cos, sin = (part.unsqueeze(1) for part in arguments["position_embeddings"])
        first, second = queries.chunk(2, dim=-1)
        turned: torch.Tensor = queries * cos + torch.cat([-second, first], dim=-1) * sin
        return turned

    def keys_and_values(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One for each head of queries."""
        heads = self.model.config.num_attention_heads
        keys, values = (self._heads(project(prompt)) for project in (self.model.k_proj, self.model.v_proj))
        shared = heads // keys.shape[1]
        return keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)

    def projected(self, mixed: torch.Tensor) -> torch.Tensor:
        """Through the attention's own output layer."""
        output: torch.Tensor = self.model.o_proj(mixed)
        return output

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:2], -1, self.model.head_dim).transpose(1, 2)


class GPT2Attention(AdaptedAttention):
    """On the attention of GPT-2. As in PEFT's, the prompt's part does not go through the output layer."""

    def queries(self, x: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:  # noqa: ARG002  (no positions here)
        """They have no positions of their own."""
        return self._parts(x)[0]

    def keys_and_values(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the layer that makes queries as well."""
        _, keys, values = self._parts(prompt)
        return keys, values

    def projected(self, mixed: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return mixed

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = self.model.c_attn(x).split(self.model.split_size, dim=2)
        return tuple(part.reshape(*part.shape[:2], -1, self.model.head_dim).transpose(1, 2) for part in parts)
