"""CPT as the engine sees it: its prompt, and its loss, which the labels of the prompt's examples are part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from peftcli.adapters.prompt_method import PromptMethod, PromptStart, start_as_words
from peftcli.errors import AdapterError
from peftcli.methods.cpt.config import CPTConfig
from peftcli.methods.cpt.encoder import ContextPrompt

IGNORED = -100


class CPTMethod(PromptMethod):
    """Context-aware prompt tuning."""

    prefix: ClassVar[str] = "cpt_"

    def encoder(self, config: CPTConfig, start: PromptStart) -> ContextPrompt:
        """The embeddings of the examples' tokens."""
        assert config.token_dim
        assert config.cpt_token_ids
        assert config.cpt_tokens_type_mask
        encoder = ContextPrompt(
            config.token_dim,
            config.cpt_tokens_type_mask,
            config.opt_projection_epsilon or 0.0,
            config.opt_projection_format_epsilon or 0.0,
        )
        if start.initialise:
            known = start.words.num_embeddings
            if max(config.cpt_token_ids) >= known:
                raise AdapterError(
                    f"cpt_token_ids: token {max(config.cpt_token_ids)} is not one of the base's {known}"
                )
            start_as_words(encoder, start.words, torch.tensor(config.cpt_token_ids))
        return encoder

    def call(self, base: Callable[..., Any], arguments: dict[str, Any], config: CPTConfig) -> Any:
        """With labels the base's outputs get the loss of CPT; `input_type_mask` (B, T) says what each token is."""
        kinds = arguments.pop("input_type_mask", None)
        labels = arguments.pop("labels", None)
        outputs = base(**arguments)
        if labels is not None:
            outputs.loss = context_loss(outputs.logits, labels, kinds, config)
        return outputs

    def own_loss(self, config: CPTConfig) -> str:
        """Where the examples have labels, or labels count less the further back they are."""
        has_labels = any(kind and kind % 4 == 0 for kind in config.cpt_tokens_type_mask or ())
        if has_labels or config.opt_weighted_loss_type == "decay":
            return "CPT is trained on the labels of its examples as well"
        return ""


def context_loss(
    logits: torch.Tensor, labels: torch.Tensor, kinds: torch.Tensor | None, config: CPTConfig
) -> torch.Tensor:
    """The average loss of the labels of the examples and of the rows.

    Args:
        logits: (B, N + T, V).
        labels: (B, N + T), -100 for the virtual tokens.
        kinds: (B, T), as `cpt_tokens_type_mask` has them for the prompt; default: all are labels.
        config: the prompt's.
    """
    rows, width = labels.shape
    own = torch.tensor(config.cpt_tokens_type_mask, device=labels.device)
    tokens = torch.tensor(config.cpt_token_ids, device=labels.device)
    if kinds is None:
        kinds = labels.new_full((rows, width - len(own)), 4)
    kinds = kinds.to(labels)
    # The row's example comes after those of the prompt, of which each has four kinds.
    after = torch.where(kinds > 0, kinds + (own.max() + 3) // 4 * 4, kinds)
    kinds = torch.cat([own.expand(rows, -1).to(labels), after], dim=1)
    labels = torch.cat([tokens.expand(rows, -1).to(labels), labels[:, len(own) :]], dim=1)
    is_label = (kinds > 0) & (kinds % 4 == 0)
    labels = labels.masked_fill(~is_label, IGNORED)[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels, ignore_index=IGNORED, reduction="none"
    )
    counted = labels != IGNORED
    if config.opt_weighted_loss_type == "decay":
        losses = losses * _decayed(kinds[:, 1:], is_label[:, 1:], config.opt_loss_decay_factor or 1.0)
    return losses[counted].mean()


def _decayed(kinds: torch.Tensor, is_label: torch.Tensor, factor: float) -> torch.Tensor:
    """Each label's weight, (B, T): 1 for a row's last label, and `factor` less for each that it is further back."""
    weights = torch.ones(kinds.shape, device=kinds.device)
    for row, of_row, chosen in zip(weights, kinds, is_label, strict=True):
        for back, kind in enumerate(of_row[chosen].unique().flip(0)):
            row[of_row == kind] = factor**back
    return weights
