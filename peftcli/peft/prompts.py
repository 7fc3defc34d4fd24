"""What PEFT's models with a prompt offer beside what all have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from peftcli.adapters.engine import AdaptedModel
from peftcli.adapters.prompt_method import SAVED, word_embeddings
from peftcli.adapters.prompted import PromptedModel
from peftcli.errors import AdapterError
from peftcli.peft import prompt_forward, prompt_generation


class Prompts(nn.Module):
    """A model whose engine (`tuner`) puts adapters on layers, or prompts before inputs.

    In a model with prompts `base_model` is the base model itself, and the prompts stand beside it in `prompt_encoder`.
    """

    base_model: Any
    prompt_encoder: nn.ModuleDict
    prompt_tokens: dict[str, torch.Tensor]

    @property
    def tuner(self) -> AdaptedModel | PromptedModel:
        """The engine."""
        tuner: AdaptedModel | PromptedModel = self.__dict__.get("_prompted") or self.base_model
        return tuner

    def take_in(self, tuner: AdaptedModel | PromptedModel) -> None:
        """Makes an engine this model's, with PEFT's names for its parts."""
        if isinstance(tuner, PromptedModel):
            # No module of its own, so that the base's names stay as they are.
            self.__dict__["_prompted"] = tuner
            self.base_model = tuner.model
            self.prompt_encoder = tuner.prompt_encoder
            self.prompt_tokens = tuner.prompt_tokens
        else:
            self.base_model = tuner

    @property
    def word_embeddings(self) -> nn.Module:
        """The embeddings that a prompt stands before."""
        return word_embeddings(self.tuner.model)

    def get_prompt(
        self,
        batch_size: int,
        task_ids: torch.Tensor | None = None,
        max_cache_len: int | None = None,  # noqa: ARG002  (PEFT's signature; no cache needs it any more)
    ) -> torch.Tensor | Cache:
        """The prompt in use for so many rows: vectors (rows, virtual tokens, numbers), or a cache that holds it.

        Raises:
            AdapterError: where no prompt is in use.
        """
        prompt = self._prompt()
        if prompt is None:
            raise AdapterError("no prompt is in use")
        if prompt.method.keys_and_values:
            return prompt.cache(batch_size)
        return prompt.vectors(batch_size, task_ids)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> torch.Tensor:
        """The vectors that a prompt's file holds."""
        tuner = self.tuner
        if not isinstance(tuner, PromptedModel):
            raise AdapterError("the model has no prompts")
        return tuner.saved_tensors(adapter_name)[SAVED].detach().cpu()

    def prepare_inputs_for_generation(
        self, *args: Any, task_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What a step of `generate` gives to the base, with the prompt in use."""
        base: Any = self.tuner.model
        prompt = self._prompt()
        prepare = base.prepare_inputs_for_generation
        prepared: dict[str, Any] = (
            prepare(*args, **kwargs)
            if prompt is None
            else prompt_generation.preparing(prompt, task_ids)(*args, **kwargs)
        )
        return prepared

    def _prompt(self) -> prompt_forward.Prompt | None:
        tuner = self.tuner
        return prompt_forward.current(tuner) if isinstance(tuner, PromptedModel) else None
