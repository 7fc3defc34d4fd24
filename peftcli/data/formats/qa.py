"""`qa`: {question, context, answers: {text: […], answer_start: […]}}, as in SQuAD; empty lists if there is no answer.

`answer_start` counts the context's characters from 0. SQuAD's own files write the answers as a list of
{text, answer_start}, which is taken, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Answer, Question
from peftcli.errors import DataError

_SHAPE = "write {text: [...], answer_start: [...]}, with empty lists where there is no answer"


@row_format(("question", "context", "answers"), targets=("answers",))
def qa(row: Mapping[str, Any]) -> Question:
    """The question, its context, and the answers that stand in it."""
    question, context = _text(row["question"], "question"), _text(row["context"], "context")
    if "answers" not in row:
        return Question(question, context, None)
    found = [_answer(*pair, context, at) for at, pair in enumerate(_pairs(row["answers"]))]
    return Question(question, context, found)


def _text(value: Any, what: str) -> str:
    if not (text := string(value, what)).strip():
        raise DataError(f"{what} is empty")
    return text


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Each answer's text and place."""
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        value = {name: [each.get(name) for each in value] for name in ("text", "answer_start")}
    if not isinstance(value, dict) or not {"text", "answer_start"} <= set(value):
        kind = "null" if value is None else "text" if isinstance(value, str) else _kind(value)
        raise DataError(f"answers is {kind}; {_SHAPE}")
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise DataError(f"answers.text and answers.answer_start must be lists; {_SHAPE}")
    if len(texts) != len(starts):
        raise DataError(
            f"answers has {len(texts):,} in text and {len(starts):,} in answer_start; write one of each an answer"
        )
    return list(zip(texts, starts, strict=True))


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object of " + (", ".join(map(str, value)) or "nothing")
    return type(value).__name__


def _answer(text: Any, start: Any, context: str, at: int) -> Answer:
    if not string(text, f"answers.text[{at}]").strip():
        raise DataError(f"answers.text[{at}] is empty; {_SHAPE}")
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f"answers.answer_start[{at}] must be a whole number, not {start!r}")
    stands = context[start : start + len(text)] if start >= 0 else ""
    if stands != text:
        raise DataError(
            f"answers.text[{at}] is {_short(text)}, but at its answer_start, {start}, the context has "
            f"{_short(stands)}; {_advice(text, start, context)}"
        )
    return Answer(text, start)


def _advice(text: str, start: int, context: str) -> str:
    """Where the text stands nearest to the place that was given."""
    behind, before = context.find(text, max(start, 0)), context.rfind(text, 0, max(start, 0) + len(text))
    places = [at for at in (behind, before) if at >= 0]
    if not places:
        return "it stands nowhere in the context: answers are parts of it, letter by letter"
    nearest = min(places, key=lambda at: abs(at - start))
    return f"it stands at {nearest} (characters count from 0, not bytes)"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
