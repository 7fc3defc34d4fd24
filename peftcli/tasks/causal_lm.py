"""CAUSAL_LM: the next token of texts, completions, instructions and chats.

Logits are computed only where a token is trained: the collator lists those positions, row by row, and the
model's head sees no others. Shapes: B rows, T tokens, K trained positions of the row with most, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.adapters.config import reads_inputs
from peftcli.adapters.prompted import PromptedModel, is_prompted
from peftcli.data.example import Chat, Completion, Example, Instruction, Row, Text
from peftcli.data.prompt import Prompter
from peftcli.data.tokens import (
    IGNORED,
    Encoded,
    Passage,
    encode_passages,
    require_offsets,
    tokenizer_identity,
)
from peftcli.errors import ModelError, RecipeError
from peftcli.recipe.schema import Recipe
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.by_rows import attending_by_rows, logits, mixes_packed_rows, parameters
from peftcli.tasks.head import HeadPlace, place_for_loss
from peftcli.tasks.token_loss import summed_token_loss
from peftcli.tasks.unwrapped import unwrapped

_INPUTS = ("input_ids", "attention_mask", "position_ids")
_JOINED_INPUTS = ("input_ids", "position_ids", "cu_seq_lens_q")


class CausalLM(Task):
    """The task of predicting each trained token from the ones before it."""

    task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str | None] = "text-generation"
    usage: ClassVar[str] = 'peftcli generate --adapter . --prompt "…"'
    counts_tokens: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        tokenizer = processor
        require_offsets(tokenizer)
        data = recipe.data
        self._tokenizer = tokenizer
        self._loss_on = data.loss_on
        self._packing = data.packing
        # Flash attention keeps packed rows apart by their positions, in a batch of one only.
        self._flat = False
        # Whether the model attends by rows: batches then have no padding.
        self._by_rows = False
        # Where the loss takes the place of the model's head: there are then no logits.
        self._head: HeadPlace | None = None
        self._prompter = Prompter.of(tokenizer, data.chat_template, data.system_prompt, data.source_prefix)
        self._special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForCausalLM`."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `input_ids` and `labels`, int32 of the same length."""
        passages = [self._passage(example) for example in examples]
        encoded = encode_passages(self._tokenizer, [passage for passage, _ in passages])
        return [
            [self._row(each, ends_with_eos=plain)] for each, (_, plain) in zip(encoded, passages, strict=True)
        ]

    def _passage(self, example: Example) -> tuple[Passage, bool]:
        """The text with its trained characters, and whether an end-of-sequence token must follow it."""
        if isinstance(example, Text):
            self._check_loss_on("text", ("all",))
            self._prompter.refuse_system("text")
            self._prompter.refuse_prefix("text")
            passage = self._prompter.plain(example.text)
            passage.boundary = 0
            passage.spans = [(0, len(passage.text))] if passage.text else []
            return passage, True
        if isinstance(example, Completion):
            self._check_loss_on("completion", ("completion", "all"))
            return self._completion(self._prompter.completion(example.prompt), example.completion), True
        if isinstance(example, Instruction):
            prompt = self._prompter.instruction(example)
            if isinstance(prompt, Chat):
                return self._chat([*prompt.messages, {"role": "assistant", "content": example.output}]), False
            self.tally.count("plain instructions")
            return self._completion(prompt, example.output), True
        assert isinstance(example, Chat)
        return self._chat(example.messages), False

    def _completion(self, prompt: Passage, completion: str) -> Passage:
        text = prompt.text + completion
        first = 0 if self._loss_on == "all" else prompt.boundary
        spans = [(first, len(text))] if first < len(text) else []
        return Passage(text, prompt.boundary, spans, prompt.begin)

    def _chat(self, messages: Sequence[dict[str, str]]) -> Passage:
        passage = self._prompter.chat_template().passage(self._prompter.chat(messages))
        self.tally.count("rewritten turns", passage.rewritten)
        if self._loss_on == "completion":
            passage.spans = [span for span in passage.spans if span[1] > passage.boundary]
        elif self._loss_on == "all":
            passage.spans = [(0, len(passage.text))]
        return passage

    def _check_loss_on(self, kind: str, choices: tuple[str, ...]) -> None:
        if self._loss_on is not None and self._loss_on not in choices:
            known = " or ".join(choices)
            raise RecipeError(
                f"data.loss_on: '{self._loss_on}' has no meaning for type '{kind}'; use {known}"
            )

    def _row(self, encoded: Encoded, *, ends_with_eos: bool) -> Row:
        ids, trained = encoded.input_ids, encoded.trained
        eos = self._tokenizer.eos_token_id
        if ends_with_eos:
            self.tally.count("ends")
            if eos is not None and (not ids or ids[-1] != eos):
                ids, trained = [*ids, eos], [*trained, any(trained)]
        elif self._loss_on != "all":
            self._count_turns(ids, trained)
        input_ids = np.asarray(ids, dtype=np.int32)
        self.tally.largest = max(self.tally.largest, int(input_ids.max(initial=-1)))
        return {"input_ids": input_ids, "labels": np.where(trained, input_ids, np.int32(IGNORED))}

    def identity(self) -> str:
        """What rows depend on beside their text; a template may tell the date."""
        data, template = self.recipe.data, self._prompter.template
        asks_date = template is not None and "strftime_now" in template.source
        depends = {
            "task": self.task_type,
            "tokenizer": tokenizer_identity(self._tokenizer),
            "begin": self._prompter.begin,
            "template": None if template is None else template.source,
            "texts": [data.system_prompt, data.source_prefix, self._loss_on],
            "date": date.today().isoformat() if asks_date else None,  # noqa: DTZ011  (as the template tells it)
        }
        return json.dumps(depends, sort_keys=True)

    def _count_turns(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        for at, flag in enumerate(trained):
            if flag and (at + 1 == len(trained) or not trained[at + 1]):
                self.tally.count("turns")
                self.tally.count("ended turns", ids[at] in self._special)

    def remarks(self) -> list[str]:
        """How rows were written where there was a choice, and ends that no model can learn."""
        said = []
        found = Counter(self.tally.counts)
        if found["plain instructions"]:
            said.append(
                "instructions are written as '### Instruction:' … '### Response:': there is no chat template"
            )
        if found["ends"] and self._tokenizer.eos_token_id is None:
            said.append("the tokenizer has no end-of-sequence token: where a row ends is never trained")
        if found["rewritten turns"]:
            said.append(
                f"the chat template leaves something out of {found['rewritten turns']:,} assistant turns, such as "
                "reasoning in earlier ones: they are trained as it writes them (data.loss_on: completion trains "
                "the last turn only)"
            )
        never = found["turns"] - found["ended turns"]
        if never:
            said.append(
                f"the token that ends a turn is not trained in {never:,} of {found['turns']:,} assistant turns: "
                "the model may not learn to stop there; see data.chat_template"
            )
        return said

    # Batches.

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Right-padded tensors, or all rows as one (B = 1) where the model attends by rows.

        Under flash attention packed rows become one row, too.
        `input_ids`, `labels` (B, T), `attention_mask` (B, T) or, for packed and joined rows, `position_ids` (B, T);
        `kept` (B, K): the positions whose next token is trained; `targets` (B, K): that token, or -100;
        `cu_seq_lens_q`: where joined rows begin, and T, as plain numbers.
        """
        joined = self._by_rows or (self._flat and "position_ids" in rows[0])
        if joined:
            rows = [_joined(rows)]
        longest = max(len(row["input_ids"]) for row in rows)
        pad = self._tokenizer.pad_token_id
        batch: dict[str, Any] = {
            "input_ids": torch.full((len(rows), longest), 0 if pad is None else pad),
            "labels": torch.full((len(rows), longest), IGNORED),
        }
        packed = "position_ids" in rows[0]
        # Packed rows have no mask: Transformers then keeps segments apart where positions start again.
        # Padding is such a segment too.
        batch["position_ids" if packed else "attention_mask"] = torch.zeros(
            (len(rows), longest), dtype=torch.long
        )
        for at, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][at, :length] = torch.as_tensor(row["input_ids"])
            batch["labels"][at, :length] = torch.as_tensor(row["labels"])
            if packed:
                batch["position_ids"][at, :length] = torch.as_tensor(row["position_ids"])
                batch["position_ids"][at, length:] = torch.arange(longest - length)
            else:
                batch["attention_mask"][at, :length] = 1
        batch["kept"], batch["targets"] = _kept(batch["labels"])
        if self._by_rows:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            starts = np.flatnonzero(rows[0]["position_ids"] == 0)
            batch["cu_seq_lens_q"] = [*starts.tolist(), longest]
        return batch

    def check_model(self, model: nn.Module) -> None:
        """Refuse a vocabulary that is not the tokenizer's, and packing where packed rows would see one another.

        Raises:
            ModelError: for a model that takes no positions, or that carries a state from one row to the next.
        """
        base: Any = unwrapped(model)
        size = base.get_input_embeddings().num_embeddings
        if self.tally.largest >= size:
            raise ModelError(
                f"the tokenizer gives token {self.tally.largest}, and the base knows {size}: they do not "
                "belong together"
            )
        tuner = getattr(model, "tuner", None)
        if isinstance(tuner, PromptedModel):
            self._check_prompt(tuner)
        if not self._packing:
            return
        if reads_inputs(model):
            raise ModelError(
                "data.packing: alora_invocation_tokens are looked for once in all the rows that are packed together; "
                "set data.packing to false"
            )
        self._flat = "flash" in str(getattr(getattr(base, "config", None), "_attn_implementation", ""))
        if "position_ids" not in parameters(base):
            problem = "takes no position_ids, which say where rows start"
        elif mixes_packed_rows(model, base):
            problem = "lets packed rows see one another"
        else:
            return
        raise ModelError(f"data.packing: {type(base).__name__} {problem}; set data.packing to false")

    @contextmanager
    def readied(self, model: nn.Module, like: nn.Module | None = None) -> Iterator[None]:
        """Lets the model attend by rows, and the loss be where its head is, where they can.

        What is compiled has one shape, prompts stand before rows, and aLoRA looks for its tokens in each row.
        """
        if self.recipe.training.compiles or is_prompted(model) or reads_inputs(model):
            yield
            return
        self._head = place_for_loss(model, _said, like)
        with attending_by_rows(model, like) as able:
            self._by_rows = able
            try:
                yield
            finally:
                self._by_rows, self._head = False, None

    def _check_prompt(self, tuner: PromptedModel) -> None:
        if reason := tuner.own_loss():
            raise ModelError(f"adapter: {reason}, which a recipe does not do; it trains on the rows only")
        if self._packing:
            raise ModelError(
                "data.packing: a prompt stands before the first of the packed rows only; set data.packing to false"
            )

    @classmethod
    def generates(cls, config: Any) -> bool:
        """After every prompt; a base with an encoder does not continue what it reads."""
        return not config.is_encoder_decoder

    # The loss.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the trained tokens' losses, in float32 or better, and their number."""
        targets, count = batch["targets"], (batch["targets"] != IGNORED).sum()
        if self._head is not None and self._head.is_free():
            base, inputs = unwrapped(model), _inputs(batch)
            total = self._head.loss(
                lambda: logits(model, base, inputs), batch["kept"], targets, label_smoothing
            )
            return total, count
        own = _trained_logits(model, batch)
        total = summed_token_loss(own.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)
        return total, count

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """`loss`, and `accuracy`: the share of trained tokens that are the likeliest ones."""
        logits, targets = _trained_logits(model, batch), batch["targets"]
        count = (targets != IGNORED).sum()
        return Evaluated(
            {
                "loss": (summed_token_loss(logits.flatten(0, 1), targets.flatten()), count),
                "accuracy": ((logits.argmax(-1) == targets).sum(), count),
            }
        )


def _joined(rows: Sequence[Row]) -> Row:
    """Packed rows as one: no row's first token is predicted, since another row's last stands before it."""
    whole = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "labels")}
    positions = [row.get("position_ids", np.arange(len(row["input_ids"]), dtype=np.int32)) for row in rows]
    whole["position_ids"] = np.concatenate(positions)
    whole["labels"][np.cumsum([0, *(len(row["labels"]) for row in rows[:-1])])] = IGNORED
    return whole


def _kept(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions before trained tokens, (B, K), and the tokens, -100 where a row has fewer than K."""
    trained = labels[:, 1:] != IGNORED
    most = max(1, int(trained.sum(1).max()))
    # A stable sort of the flags puts the trained positions first, in order.
    order = (~trained).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return order, labels[:, 1:].gather(1, order)


def _said(model: nn.Module, ids: Tensor) -> Tensor:
    return logits(model, unwrapped(model), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _inputs(batch: Batch) -> dict[str, Any]:
    names = _JOINED_INPUTS if "cu_seq_lens_q" in batch else _INPUTS
    return {name: batch[name] for name in names if name in batch}


def _trained_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, K, V) at the kept positions."""
    inputs, kept = _inputs(batch), batch["kept"]
    base = unwrapped(model)
    if _keeps_by_row(base):
        return logits(model, base, {**inputs, "logits_to_keep": kept})
    # Where a prompt stands before the tokens, it has logits, too.
    own = logits(model, base, inputs)[:, -batch["input_ids"].shape[1] :]
    return own.take_along_dim(kept.unsqueeze(-1), dim=1)


def _keeps_by_row(base: nn.Module) -> bool:
    """Whether `logits_to_keep` may differ from row to row, as Transformers' own slicing function lets it."""
    own = hasattr(sys.modules[type(base).__module__], "slice_logits_to_keep")
    return own and "logits_to_keep" in parameters(base)
