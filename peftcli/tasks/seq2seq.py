"""SEQ_2_SEQ_LM: one text written of another: translation, summaries, questions and answers.

The model's own way from labels to decoder inputs is asked for, so that each family starts its decoder as it was
pretrained. Shapes: B rows, S tokens of the source, T tokens of the target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.adapters.prompted import is_prompted
from peftcli.data.example import Example, Limit, Pair, Row
from peftcli.data.overflow import effective_limit
from peftcli.data.tokens import IGNORED
from peftcli.errors import ModelError
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import SequenceToSequenceOptions, task_options
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.generation import generated
from peftcli.tasks.head import HeadPlace, place_for_loss
from peftcli.tasks.languages import has_languages, language_settings, require_target, use_languages
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.text_batch import added_ids, cut_texts, pad_texts
from peftcli.tasks.token_loss import summed_token_loss
from peftcli.tasks.unwrapped import unwrapped

# What an evaluation generates at most where nothing says how long targets are: as many as `peftcli generate`.
_LONGEST = 256
_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class SequenceToSequence(Task):
    """The task of writing a target, token by token, of a source read as a whole."""

    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    # The Hub has no tag for encoder-decoders any more: they generate text like others.
    pipeline_tag: ClassVar[str | None] = "text-generation"
    usage: ClassVar[str] = 'peftcli generate --adapter . --prompt "…"'
    counts_tokens: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, SequenceToSequenceOptions)
        use_languages(processor, options.source_lang, options.target_lang)
        require_target(processor)
        self._max_target = options.max_target_length
        self._generates = recipe.training.predict_with_generate
        self._largest = {"source": -1, "target": -1}
        # Where the loss takes the place of the model's head: there are then no logits.
        self._head: HeadPlace | None = None

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForSeq2SeqLM`."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    # Rows.

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """One row an example: `input_ids` of the source and `labels` of the target, int32, with special tokens."""
        pairs = [example for example in examples if isinstance(example, Pair)]
        prefix = self.recipe.data.source_prefix or ""
        rows = self._tokens("source", text=[prefix + pair.source for pair in pairs])
        found = [{"input_ids": ids} for ids in rows]
        with_target = [at for at, pair in enumerate(pairs) if pair.target is not None]
        targets = self._tokens("target", text_target=[pairs[at].target for at in with_target])
        for at, ids in zip(with_target, targets, strict=True):
            found[at]["labels"] = ids
        return [[row] for row in found]

    def _tokens(self, side: str, **texts: Any) -> list[Any]:
        if not all(texts.values()):
            return []
        encoded = self.processor(**texts, truncation=False, verbose=False)["input_ids"]
        eos = self.processor.eos_token_id
        found = []
        for ids in encoded:
            # A tokenizer without a template ends no text; without an end the model could not learn to stop.
            needs_end = side == "target" and eos is not None and eos not in ids
            found.append(np.asarray([*ids, eos] if needs_end else ids, dtype=np.int32))
            self._largest[side] = max(self._largest[side], int(found[-1].max(initial=-1)))
        return found

    def trained_tokens(self, row: Row) -> int:
        """All of the target's."""
        return len(row["labels"])

    def cut(self, row: Row, limit: int) -> Row:
        """The source cut as tokenizers cut it: special tokens stay."""
        return {**row, "input_ids": self._cut(row["input_ids"], limit)}

    def limits(self) -> tuple[Limit, ...]:
        """The target has its own."""
        tokens = effective_limit(self._max_target, self.max_input())
        return (Limit("labels", "target", tokens, "task.max_target_length", self._cut_target),)

    def _cut_target(self, row: Row, limit: int) -> Row:
        return {**row, "labels": self._cut(row["labels"], limit)}

    def _cut(self, ids: Any, limit: int) -> Any:
        return cut_texts({"input_ids": ids}, limit, added_ids(self.processor))["input_ids"]

    def notes(self) -> list[str]:
        """The languages, where the tokenizer writes them."""
        tokenizer = self.processor
        return (
            [f"languages: {tokenizer.src_lang} to {tokenizer.tgt_lang}"] if has_languages(tokenizer) else []
        )

    def remarks(self) -> list[str]:
        """Metrics that cannot be computed."""
        wanted = {"rouge_score": "rouge", "sacrebleu": "bleu and chrf"}
        return missing_measures(wanted) if self._generates else []

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` (B, S), and `labels` (B, T), -100 behind each row's last."""
        batch: dict[str, Any] = dict(pad_texts(rows, self.processor.pad_token_id))
        batch["labels"] = torch.full((len(rows), max(len(row["labels"]) for row in rows)), IGNORED)
        for at, row in enumerate(rows):
            batch["labels"][at, : len(row["labels"])] = torch.as_tensor(row["labels"])
        return batch

    def check_model(self, model: nn.Module) -> None:
        """Refuse a vocabulary that is not the tokenizer's, and a decoder that does not know how to start.

        Raises:
            ModelError: naming what does not fit.
        """
        base: Any = unwrapped(model)
        decoder = base.config.get_text_config(decoder=True)
        sizes = {
            "source": base.config.get_text_config(encoder=True).vocab_size,
            "target": getattr(decoder, "decoder_vocab_size", None) or decoder.vocab_size,
        }
        for side, size in sizes.items():
            if self._largest[side] >= size:
                raise ModelError(
                    f"the tokenizer gives token {self._largest[side]} in a {side}, and the base knows {size}: they do "
                    "not belong together"
                )
        try:
            _decoder_inputs(base, torch.zeros((1, 1), dtype=torch.long))
        except ValueError as error:
            raise ModelError(f"the base does not say what its decoder starts with: {error}") from error

    # Training and evaluation.

    @contextmanager
    def readied(self, model: nn.Module, like: nn.Module | None = None) -> Iterator[None]:
        """Lets the loss be where the model's head is, if it can; prompts' positions have logits, too."""
        if not self.recipe.training.compiles and not is_prompted(model):
            self._head = place_for_loss(
                model, lambda tried, ids: _said(tried, ids, torch.ones_like(ids), ids), like
            )
        try:
            yield
        finally:
            self._head = None

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the target tokens' losses, in float32 or better, and their number."""
        if self._head is None or not self._head.is_free():
            return _loss(_logits(model, batch), batch["labels"], label_smoothing)
        source, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        everywhere = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        total = self._head.loss(
            lambda: _said(model, source, mask, labels), everywhere, labels, label_smoothing
        )
        return total, (labels != IGNORED).sum()

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """`loss`, `accuracy` (the share of target tokens that are the likeliest), and (generated, target) texts."""
        logits, labels = _logits(model, batch), batch["labels"]
        loss = _loss(logits, labels)
        hits = (logits.argmax(-1) == labels).sum()
        del logits
        records = self._generated(model, batch) if self._generates else []
        return Evaluated({"loss": loss, "accuracy": (hits, loss[1])}, records)

    def _generated(self, model: nn.Module, batch: Batch) -> list[tuple[str, str]]:
        tokens = generated(
            model,
            {name: batch[name] for name in ("input_ids", "attention_mask")},
            self.processor,
            self.recipe.training,
            longest=(self._max_target or _LONGEST) + 1,
            **language_settings(unwrapped(model), self.processor),
        )
        padded = batch["labels"].where(batch["labels"] != IGNORED, self.processor.pad_token_id)
        both = (
            self.processor.batch_decode(ids.tolist(), skip_special_tokens=True) for ids in (tokens, padded)
        )
        return [(said.strip(), wanted.strip()) for said, wanted in zip(*both, strict=True)]

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """Of generated texts: `exact_match`; rouge-score's F1 (0 to 1); sacreBLEU's BLEU and chrF (0 to 100)."""
        if not records:
            return {}
        said, wanted = zip(*records, strict=True)
        scores = {"exact_match": sum(a == b for a, b in records) / len(records)}
        if has_measure("rouge_score"):
            scorer = measure("rouge_score.rouge_scorer").RougeScorer(list(_ROUGE))
            found = [scorer.score(target, prediction) for prediction, target in records]
            scores |= {name: sum(each[name].fmeasure for each in found) / len(found) for name in _ROUGE}
        if has_measure("sacrebleu"):
            sacrebleu = measure("sacrebleu")
            # `force`: a text that ends in a token of its own, ".", is no reason to warn.
            scores["bleu"] = sacrebleu.corpus_bleu(list(said), [list(wanted)], force=True).score
            scores["chrf"] = sacrebleu.corpus_chrf(list(said), [list(wanted)]).score
        return scores

    # Generation.

    @classmethod
    def generates(cls, config: Any) -> bool:
        """From every base with an encoder and a decoder."""
        return bool(config.is_encoder_decoder)

    @classmethod
    def generation_settings(
        cls, model: nn.Module, tokenizer: Any, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The target's language, where the tokenizer writes languages."""
        use_languages(tokenizer, options.get("source_lang"), options.get("target_lang"))
        return language_settings(unwrapped(model), tokenizer)


def _loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Sum:
    total = summed_token_loss(logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing)
    return total, (labels != IGNORED).sum()


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, T, V) of the target's tokens."""
    labels = batch["labels"]
    # Where a prompt stands before the decoder's tokens, it has logits, too.
    return _said(model, batch["input_ids"], batch["attention_mask"], labels)[:, -labels.shape[1] :]


def _said(model: nn.Module, source: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    decoder = _decoder_inputs(unwrapped(model), labels)
    found: Tensor = model(input_ids=source, attention_mask=mask, **decoder, use_cache=False).logits
    return found


def _decoder_inputs(base: nn.Module, labels: Tensor) -> dict[str, Tensor]:
    """The labels as the decoder takes them: shifted by the model's own function, or by its forward."""
    shift: Any = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    return {"labels": labels} if shift is None else {"decoder_input_ids": shift(labels)}
