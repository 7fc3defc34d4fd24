"""Chats to text, and which characters of it the assistant said.

Where the template marks them with `{% generation %}`, that is believed. Else they are found by rendering: a
turn starts where the prompt for it (the messages before it, with the generation prompt) ends, and ends
where the chat up to it ends, with the token that ends the turn but without the white space after that. A
template may render an earlier turn otherwise once more messages follow (it strips the reasoning, or ends
only the last turn): such turns are found by their content and by the text that ends the last turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from peftcli.data.bounds import bounded, flaw
from peftcli.data.tokens import Passage, Span
from peftcli.errors import DataError

Messages = Sequence[dict[str, str]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What a template can raise: Jinja's own errors, and those of any expression (Python's compiler among them).
_RAISED = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, SyntaxError
)  # fmt: skip
_ADVICE = "mark what the assistant says with {% generation %}…{% endgeneration %} in data.chat_template"


def load_template(setting: str | None) -> str | None:
    """The template that `data.chat_template` means: Jinja itself, or the name of its file.

    Raises:
        DataError: where it is neither.
    """
    if setting is None or "{%" in setting or "{{" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(
            f"{setting}: {reason}; give a Jinja template or its file", where="data.chat_template"
        ) from None


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template with the tokenizer whose special tokens it may use."""

    tokenizer: Any
    source: str

    @classmethod
    def of(cls, tokenizer: Any, setting: str | None) -> ChatTemplate | None:
        """The recipe's template, else the tokenizer's; None where there is neither."""
        source = load_template(setting)
        if source is None and tokenizer.chat_template:
            source = tokenizer.get_chat_template()
        return None if source is None else cls(tokenizer, source)

    @property
    def marks_generation(self) -> bool:
        """Whether the template itself says what the assistant generates."""
        return _GENERATION.search(self.source) is not None

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """The chat as text; with `prompt`, up to where the assistant's next turn starts.

        Raises:
            DataError: with the template's own words where it refuses the messages.
        """
        with self._refusals(messages):
            text: str = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        return text

    @contextmanager
    def _refusals(self, messages: Messages) -> Iterator[None]:
        """Within it the template is rendered, in bounds; what it raises becomes one line."""
        try:
            if reason := flaw(self.source):
                raise DataError(f"the chat template is refused: {reason}")
            with bounded():
                yield
        except MemoryError:
            raise DataError("the chat template takes too much memory; it grows without end") from None
        except _RAISED as error:
            advice = (
                "; a system message comes from the data or data.system_prompt"
                if _has_system(messages)
                else ""
            )
            said = " ".join(str(error)[:300].split())
            raise DataError(f"the chat template refuses the messages: {said}{advice}") from None

    def passage(self, messages: Messages) -> Passage:
        """The chat as text, with the characters that the assistant said, turn by turn.

        Raises:
            DataError: where they cannot be told from the rest.
        """
        if self.marks_generation:
            return self._marked(messages)
        full = self.render(messages)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        starts = [self._start(messages, turn, full) for turn in turns]
        spans: list[Span] = []
        ending = ""
        # The last turn comes first: how it ends tells how the others do.
        for turn, start, limit in reversed(list(zip(turns, starts, [*starts, len(full)][1:], strict=True))):
            end = self._end(messages, turn, full, (start, limit), ending)
            ending = ending or _ending(full[start:end], messages[turn]["content"])
            spans.append((start, end))
        spans.reverse()
        rewritten = sum(
            messages[turn]["content"].strip() not in full[slice(*span)]
            for turn, span in zip(turns, spans, strict=True)
        )
        return Passage(full, starts[-1] if starts else len(full), spans, rewritten=rewritten)

    def _marked(self, messages: Messages) -> Passage:
        from transformers.utils.chat_template_utils import render_jinja_template

        last = max(
            (at for at, message in enumerate(messages) if message["role"] == "assistant"), default=None
        )
        full = self.render(messages)
        with self._refusals(messages):
            _, marks = render_jinja_template(
                [list(messages)],
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        spans = [(start, end) for start, end in marks[0] if end > start]
        prompt = self.render(messages[:last], prompt=True) if last else ""
        if not full.startswith(prompt):
            # The template says itself what is generated, so it is believed over its own prompt.
            return Passage(full, spans[-1][0] if spans else 0, spans)
        return Passage(full, len(prompt), spans)

    def _start(self, messages: Messages, turn: int, full: str) -> int:
        if turn == 0:
            # No template renders an empty chat, so the prompt before a first turn cannot be asked for.
            alone, content = self.render(messages[:1]), messages[0]["content"].strip()
            at = alone.rfind(content) if content else -1
            if at < 0 or not full.startswith(alone[: at + len(content)]):
                raise DataError(
                    f"messages[0]: cannot tell where the assistant's first turn starts; {_ADVICE}"
                )
            return at
        prompt = self.render(messages[:turn], prompt=True)
        if full.startswith(prompt):
            return len(prompt)
        raise DataError(
            f"messages[{turn}]: the chat template's prompt for the turn (it ends in {prompt[-30:]!r}) is not "
            f"how it renders the whole chat, so what a model sees in use was never trained; {_ADVICE}"
        )

    def _end(self, messages: Messages, turn: int, full: str, room: Span, ending: str) -> int:
        """Where the turn that starts at room[0], and ends before room[1], ends."""
        start, limit = room
        content = messages[turn]["content"]
        upto = full if turn == len(messages) - 1 else self.render(messages[: turn + 1])
        if full.startswith(upto) and len(upto) > start:
            return start + len(_without_tail(full[start : len(upto)], content))
        lead = len(full[start:]) - len(full[start:].lstrip())
        if full.startswith(content.strip(), start + lead):
            end = start + lead + len(content.strip())
            return end + len(ending) if ending and full.startswith(ending, end) else end
        at = full.find(ending, start, limit) if ending else -1
        if at < 0:
            raise DataError(f"messages[{turn}]: cannot tell where the assistant's turn ends; {_ADVICE}")
        return at + len(ending)


def _has_system(messages: Messages) -> bool:
    return any(message["role"] == "system" for message in messages)


def _without_tail(said: str, content: str) -> str:
    """What was said, without the white space after the text that ends the turn."""
    bare = said.rstrip()
    # Where nothing but white space ends a turn, that is what a model must learn to end it with.
    ended = content.rstrip()
    return said if ended and bare.endswith(ended) else bare


def _ending(said: str, content: str) -> str:
    """The text that ends the turn: what follows the content."""
    at = said.rfind(content.strip())
    return said[at + len(content.strip()) :].strip() if at >= 0 else ""
