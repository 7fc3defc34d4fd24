"""QUESTION_ANS: which part of a text answers a question, in windows where the text is longer than the model reads.

A window's answer is trained as its first and last token; where the window has none, both are the token that stands for
no answer: CLS, else the text's first. An example's answer is its best window's. Shapes: B windows, T tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftcli.adapters.prompt_method import PromptMethod
from peftcli.data.example import Example, Question, Row
from peftcli.data.tokens import require_offsets
from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.files import write_text
from peftcli.recipe.schema import Recipe
from peftcli.recipe.tasks import QuestionAnsweringOptions, task_options
from peftcli.registry import ENGINES, resolve
from peftcli.tasks.base import Batch, Evaluated, Sum, Task
from peftcli.tasks.measures import has_measure, measure, missing_measures
from peftcli.tasks.spans import Span, best_of, best_spans
from peftcli.tasks.text_batch import check_vocabulary, largest_token, pad_texts, text_inputs
from peftcli.tasks.windows import OUTSIDE, PairTokens, encode_pairs

(_FILE,) = QuestionAnsweringOptions.FILES
_STRIDE = 128
# Begin and end: what the head says of each token.
_OUTPUTS = 2


class QuestionAnswering(Task):
    """The task of finding answers."""

    task_type: ClassVar[str] = "QUESTION_ANS"
    pipeline_tag: ClassVar[str | None] = "question-answering"

    def __init__(self, recipe: Recipe, processor: Any, config: Any = None) -> None:
        super().__init__(recipe, processor, config)
        options = task_options(recipe)
        assert isinstance(options, QuestionAnsweringOptions)
        require_offsets(processor)
        if recipe.training.label_smoothing_factor:
            raise RecipeError(
                "training.label_smoothing_factor: a begin or an end is one token, which is not smoothed; leave it out"
            )
        method = recipe.adapter["peft_type"]
        if getattr(config, "is_encoder_decoder", False) and _puts_vectors(method):
            raise RecipeError(
                f"adapter.peft_type: {method} puts vectors in the place of tokens, which the base's decoder needs; "
                "choose another (LORA, say)"
            )
        self._options = options
        self._may_be_none = options.handle_impossible_answer
        self._largest = -1
        self._examples = 0
        self._counts: Counter[str] = Counter()

    @staticmethod
    def auto_class() -> Any:
        """`AutoModelForQuestionAnswering`."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def model_options(self) -> dict[str, Any]:
        """A head of two outputs, whatever the base was made for before."""
        return {"head": True, "num_labels": _OUTPUTS}

    def base_options(self) -> dict[str, Any]:
        """Their number, where the base says another."""
        return {} if getattr(self.config, "num_labels", _OUTPUTS) == _OUTPUTS else {"num_labels": _OUTPUTS}

    # Rows.

    def max_input(self) -> int | None:
        """Without the places that a prompt's virtual tokens take: windows fill what there is."""
        limit = super().max_input()
        return None if limit is None else limit - (self.recipe.adapter.get("num_virtual_tokens") or 0)

    @property
    def limit(self) -> int | None:
        """The most tokens of a window."""
        limits = [limit for limit in (super().limit, self.max_input()) if limit is not None]
        return min(limits, default=None)

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """The windows of each example, a row each.

        Of `window`, with `example` (1,), a number that no other example has, `none` (1,), the token that stands for no
        answer, and `context`; and, where answers are known, `span` (2,), the first one's first and last token, and
        `answers`, the texts of all.
        """
        asked = [example for example in examples if isinstance(example, Question)]
        pairs = encode_pairs(
            self.processor, [each.question for each in asked], [each.context for each in asked]
        )
        counts: Counter[str] = Counter(questions=len(asked))
        encoded = [
            self._windows(example, pair, self._examples + at, counts)
            for at, (example, pair) in enumerate(zip(asked, pairs, strict=True))
        ]
        # A batch with an error in it comes again, row by row.
        self._counts += counts
        self._examples += len(asked)
        self._largest = max(self._largest, largest_token([pair.row for pair in pairs]))
        return encoded

    def _windows(self, example: Question, pair: PairTokens, number: int, counts: Counter[str]) -> list[Row]:
        ranges = pair.ranges(*self._room(pair))
        counts.update(windows=len(ranges), long=len(ranges) > 1)
        span = self._span(example, pair, ranges, counts)
        anchor = self._none(pair)
        rows = []
        for begin, end in ranges:
            row = pair.window(begin, end)
            none = pair.place(anchor, begin, end)
            row["example"] = np.asarray([number], dtype=np.int32)
            row["none"] = np.asarray([none], dtype=np.int32)
            row["context"] = example.context
            if example.answers is not None:
                whole = span is not None and begin <= span[0] and span[1] < end
                places = [pair.first - begin + at for at in span] if span and whole else [none, none]
                row["span"] = np.asarray(places, dtype=np.int32)
                row["answers"] = [answer.text for answer in example.answers]
            rows.append(row)
        return rows

    def _room(self, pair: PairTokens) -> tuple[int, int]:
        """How many of the context's tokens a window has, and how many it shares with the one before.

        Raises:
            DataError: the question leaves too little.
        """
        room = len(pair.starts) if self.limit is None else self.limit - pair.around
        left = f"the question leaves {max(room, 0)} of {self.limit} tokens (data.max_length) to the context"
        if room < 1:
            raise DataError(f"{left}; raise it, or shorten the question")
        stride = self._options.doc_stride
        if stride is None:
            return room, min(_STRIDE, room // 2)
        if stride >= room and len(pair.starts) > room:
            raise DataError(
                f"{left}, and windows are to share {stride} of them (task.doc_stride); lower that, or raise "
                "data.max_length"
            )
        return room, min(stride, room - 1)

    def _span(
        self, example: Question, pair: PairTokens, ranges: Sequence[tuple[int, int]], counts: Counter[str]
    ) -> tuple[int, int] | None:
        """The first answer's first and last token among the context's; None where there is no answer.

        Raises:
            DataError: the answer has no token.
        """
        if example.answers is None:
            return None
        if not example.answers:
            counts["impossible"] += 1
            return None
        answer = example.answers[0]
        start, end = answer.start, answer.start + len(answer.text)
        found = pair.tokens_of(start, end)
        if found is None:
            raise DataError(
                f"the answer {answer.text!r} has no token: the tokenizer drops all of its characters"
            )
        first, last = found
        counts["torn"] += bool(pair.starts[first] < start or pair.ends[last] > end)
        counts["lost"] += not any(begin <= first and last < stop for begin, stop in ranges)
        counts["longer"] += last - first >= self._options.max_answer_length
        return found

    def _none(self, pair: PairTokens) -> int:
        """The token that stands for no answer: CLS, else BOS, else the first, as Transformers' run_qa.py has it."""
        for token in (self.processor.cls_token_id, self.processor.bos_token_id):
            found = np.flatnonzero(pair.added & (pair.row["input_ids"] == token))
            if len(found):
                return int(found[0])
        return 0

    def settle(self) -> None:
        """Whether there may be no answer is known from the training rows; of streamed ones the recipe must say it.

        Raises:
            RecipeError: it does not.
        """
        if self._may_be_none is None and not self._counts["questions"]:
            raise RecipeError(
                "task.handle_impossible_answer: say whether contexts may have no answer (true or false); streamed rows "
                "are not known before training"
            )
        if self._may_be_none is None:
            self._may_be_none = self._counts["impossible"] > 0

    def notes(self) -> list[str]:
        """What was made of the rows."""
        counts, said = self._counts, []
        if counts["long"]:
            said.append(
                f"{counts['long']:,} of {counts['questions']:,} contexts are longer than {self.limit:,} tokens with "
                f"their questions: they are read in windows, a row each ({counts['windows']:,} rows in all)"
            )
        if counts["impossible"]:
            said.append(f"{counts['impossible']:,} of {counts['questions']:,} questions have no answer")
        return [*said, "predictions may be empty" if self._may_be_none else "a prediction is never empty"]

    def remarks(self) -> list[str]:
        """Answers that are not learnt as they stand."""
        counts, longest = self._counts, self._options.max_answer_length
        said = {
            "torn": "answers begin or end within a token: what is trained has the rest of it, too",
            "lost": "answers stand in no window as a whole, and are trained as if there were none; raise "
            "data.max_length or task.doc_stride",
            "longer": f"answers have more than {longest} tokens, and no prediction has; raise task.max_answer_length",
        }
        if not self._may_be_none:
            said["impossible"] = "questions have no answer, and are given one (task.handle_impossible_answer)"
        found = [f"{counts[name]:,} {text}" for name, text in said.items() if counts[name]]
        return found + missing_measures({"torchmetrics": "exact_match and f1"})

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Tokens (B, T), `candidates` (B, T), which an answer may begin and end with, `none` (B,) and `spans` (B, 2).

        On the host, of each row: `starts` and `ends` of its tokens, `contexts`, `examples` and `answers`.
        """
        batch: dict[str, Any] = dict(pad_texts(rows, self.processor.pad_token_id))
        batch["candidates"] = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        for at, row in enumerate(rows):
            batch["candidates"][at, : len(row["starts"])] = torch.as_tensor(row["starts"] != OUTSIDE)
        batch["none"] = torch.tensor([int(row["none"][0]) for row in rows])
        for name in ("starts", "ends"):
            batch[name] = [row[name] for row in rows]
        batch["contexts"] = [row["context"] for row in rows]
        if "span" in rows[0]:
            batch["spans"] = torch.as_tensor(np.stack([row["span"] for row in rows]), dtype=torch.long)
            batch["examples"] = [int(row["example"][0]) for row in rows]
            batch["answers"] = [row["answers"] for row in rows]
        return batch

    def check_model(self, model: nn.Module) -> None:
        """Refuses a vocabulary that is not the tokenizer's."""
        check_vocabulary(model, self._largest)

    # Training, evaluation, prediction.

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Sum:
        """The sum of the windows' losses, in float32 or better, and their number."""
        del label_smoothing
        return _loss(*_logits(model, batch), batch["spans"])

    def metrics(self, model: nn.Module, batch: Batch) -> Evaluated:
        """The loss, and for each window (example, its best span, the span's text, the answers)."""
        start, end = _logits(model, batch)
        spans = self._spans(start, end, batch)
        texts = [
            context[span.start : span.end] for context, span in zip(batch["contexts"], spans, strict=True)
        ]
        records = list(zip(batch["examples"], spans, texts, batch["answers"], strict=True))
        return Evaluated({"loss": _loss(start, end, batch["spans"])}, records)

    def _spans(self, start: Tensor, end: Tensor, batch: Batch) -> list[Span]:
        longest = self._options.max_answer_length
        best = best_spans(start, end, batch["candidates"], batch["none"], longest)
        return [
            Span(int(batch["starts"][at][first]), int(batch["ends"][at][last]), *figures)
            for at, (first, last, *figures) in enumerate(
                zip(best.first, best.last, best.odds, best.scores, best.none_scores, strict=True)
            )
        ]

    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """TorchMetrics' exact match and F1 of SQuAD, from 0 to 1: the mean over questions of the best answer's.

        A question without an answer is right where none is predicted, as in SQuAD 2.
        """
        if not has_measure("torchmetrics"):
            return {}
        windows: dict[int, dict[Span, str]] = {}
        answers: dict[int, Sequence[str]] = {}
        for example, span, text, known in records:
            windows.setdefault(example, {})[span] = text
            answers[example] = known
        predicted, target = [], []
        for example, texts in windows.items():
            best = best_of([*texts], none=bool(self._may_be_none))
            name = str(example)
            predicted.append({"id": name, "prediction_text": "" if best is None else texts[best]})
            known = [*answers[example]] or [""]
            target.append({"id": name, "answers": {"text": known, "answer_start": [0] * len(known)}})
        found = measure("torchmetrics.functional.text").squad(predicted, target)
        return {name: float(found[name]) / 100 for name in ("exact_match", "f1")}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Each window's best span."""
        return list(self._spans(*_logits(model, batch), batch))

    def answer(self, rows: Sequence[Row], records: Sequence[Any], folder: Path | None) -> dict[str, Any]:
        """`answer`, its place in the context (`start`, `end`: characters from 0) and its `score`, a probability.

        Where there is none the answer is empty and has no place.
        """
        del folder
        best = best_of(records, none=bool(self._may_be_none))
        if best is None:
            least = max(records, key=lambda span: span.odds)
            return {"answer": "", "start": None, "end": None, "score": least.none_score}
        text = rows[0]["context"][best.start : best.end]
        return {"answer": text, "start": best.start, "end": best.end, "score": best.score}

    # What lies beside the adapter.

    def save(self, folder: Path) -> None:
        """The tokenizer, and whether there may be no answer."""
        super().save(folder)
        content = {"handle_impossible_answer": bool(self._may_be_none)}
        write_text(folder / _FILE, json.dumps(content, indent=2) + "\n")

    def restore(self, folder: Path) -> None:
        """Whether there may be no answer."""
        try:
            found = json.loads((folder / _FILE).read_text(encoding="utf-8"))["handle_impossible_answer"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                f"has no {_FILE} that can be read, which says whether a prediction may be empty; copy it from where "
                "it was trained",
                where=str(folder),
            ) from error
        if not isinstance(found, bool):
            raise ModelError("handle_impossible_answer must be true or false", where=str(folder / _FILE))
        self._may_be_none = found


def _puts_vectors(peft_type: str) -> bool:
    """Whether a method's prompt stands among the embeddings of tokens."""
    method = resolve(ENGINES, peft_type, what="peft_type")
    return issubclass(method, PromptMethod) and not method.keys_and_values


def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of begin and end, (B, T) each, in float32 or better; minus infinity for padding.

    Where a prompt stands before the tokens, it has logits, too.
    """
    outputs = model(**text_inputs(batch))
    padding = batch["attention_mask"] == 0
    start, end = (
        logits[:, -padding.shape[1] :]
        .to(torch.promote_types(logits.dtype, torch.float32))
        .masked_fill(padding, -torch.inf)
        for logits in (outputs.start_logits, outputs.end_logits)
    )
    return start, end


def _loss(start: Tensor, end: Tensor, spans: Tensor) -> Sum:
    total = F.cross_entropy(start, spans[:, 0], reduction="sum")
    total = (total + F.cross_entropy(end, spans[:, 1], reduction="sum")) / 2
    return total, torch.full((), len(spans), device=spans.device)
