"""The loss in the place of a model's head, so that all logits are never there at once.

The head is found by its parts, and taken on trial: a model that does anything with its logits but give them away (a
cap, a scale, a mask) keeps its own head.

Shapes: B rows, T tokens, K of them at which a token is trained, H numbers of a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.plain import is_called_plainly
from peftcli.tasks.token_loss import Head, summed_head_loss, summed_token_loss
from peftcli.tasks.unwrapped import evaluating, unwrapped

# What a model raises that wants logits there, or other inputs.
_REFUSALS = (IndexError, RuntimeError, TypeError, ValueError, AttributeError)


class LossHead(nn.Module):
    """Gives the sum of the losses of `targets` (B, K) at the positions `kept` (B, K), where a head gives logits."""

    def __init__(self, head: nn.Linear, kept: Tensor, targets: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self._head = Head(head.weight, head.bias)
        self._kept, self._targets, self._label_smoothing = kept, targets, label_smoothing

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, H) to a number."""
        kept = hidden.take_along_dim(self._kept.unsqueeze(-1), dim=1)
        return summed_head_loss(
            kept.flatten(0, 1),
            self._head,
            self._targets.flatten(),
            label_smoothing=self._label_smoothing,
        )


class HeadPlace:
    """Where a frozen head is that nothing is around or on."""

    def __init__(self, parent: nn.Module, name: str, head: nn.Linear) -> None:
        self._parent, self._name, self._head = parent, name, head

    def is_free(self) -> bool:
        """Whether the head still stands there, and is called as ever."""
        return getattr(self._parent, self._name) is self._head and is_called_plainly(self._head)

    def loss(
        self, say: Callable[[], Tensor], kept: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The sum of the losses of `targets` (B, K), which are to be said at the positions `kept` (B, K).

        Args:
            say: runs the model, and gives what that has for logits (B, T, V).
            kept: of what the head is given.
            targets: token ids, or IGNORED.
            label_smoothing: as `summed_token_loss` has it.
        """
        with self._lent_to(LossHead(self._head, kept, targets, label_smoothing)):
            return say()

    @contextmanager
    def _lent_to(self, other: nn.Module) -> Iterator[None]:
        setattr(self._parent, self._name, other)
        try:
            yield
        finally:
            setattr(self._parent, self._name, self._head)


def place_for_loss(
    model: nn.Module, say: Callable[[nn.Module, Tensor], Tensor], like: nn.Module | None = None
) -> HeadPlace | None:
    """Where the loss can be in the head's place; None where the model would say something else then.

    Args:
        model: any.
        say: what a model has for logits (B, T, V) of token ids (B, T).
        like: one of its kind that is taken on trial in its place, where the model has shapes only and no numbers.
    """
    place = _place(unwrapped(model))
    tried = place if like is None else _place(unwrapped(like))
    return place if tried is not None and _stands_trial(like or model, tried, say) else None


def _place(base: Any) -> HeadPlace | None:
    head = getattr(base, "get_output_embeddings", lambda: None)()
    if type(head) is not nn.Linear or not is_called_plainly(head):
        return None
    if any(each.requires_grad for each in head.parameters()):
        return None
    found = [
        (parent, name)
        for parent in base.modules()
        for name, child in parent.named_children()
        if child is head
    ]
    return HeadPlace(*found[0], head) if len(found) == 1 else None


def _stands_trial(model: nn.Module, place: HeadPlace, say: Callable[[nn.Module, Tensor], Tensor]) -> bool:
    embeddings: Any = unwrapped(model).get_input_embeddings()  # type: ignore[operator]  # every model of text has them
    ids = torch.arange(8, device=embeddings.weight.device).remainder(embeddings.num_embeddings).view(2, 4)
    kept = torch.tensor([[0, 2], [1, 3]], device=ids.device)
    try:
        with evaluating(model):
            own = say(model, ids).take_along_dim(kept.unsqueeze(-1), dim=1)
            found = place.loss(lambda: say(model, ids), kept, kept, label_smoothing=0.1)
    except _REFUSALS:
        return False
    wanted = summed_token_loss(own.flatten(0, 1), kept.flatten(), label_smoothing=0.1)
    rounding = torch.finfo(own.dtype).eps ** 0.5 * wanted.abs()
    return found.shape == wanted.shape and bool((found - wanted).abs() <= rounding)
