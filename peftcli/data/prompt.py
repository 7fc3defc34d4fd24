"""Prompts, as training rows have them: what `generate` sends to the model.

The law: a training row's tokens start with `prompt_ids` of its prompt, in every format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.chat import ChatTemplate
from peftcli.data.example import Chat, Instruction
from peftcli.data.tokens import Passage, beginning, token_ids
from peftcli.errors import DataError, RecipeError

# What the user says, or a source, a chat's messages (role, content), or an instruction with what it is about.
Prompt = str | Sequence[dict[str, str]] | Instruction


@dataclass(frozen=True, slots=True)
class Prompter:
    """How prompts are written: the tokenizer's beginning, the chat template, and the recipe's additions."""

    tokenizer: Any
    begin: list[int]
    begin_text: str
    template: ChatTemplate | None
    system_prompt: str | None
    source_prefix: str | None

    @classmethod
    def of(
        cls, tokenizer: Any, chat_template: str | None, system_prompt: str | None, source_prefix: str | None
    ) -> Prompter:
        """The prompter for a recipe's `data` settings."""
        template = ChatTemplate.of(tokenizer, chat_template)
        begin = beginning(tokenizer)
        begin_text = "".join(tokenizer.convert_ids_to_tokens(begin))
        return cls(tokenizer, begin, begin_text, template, system_prompt, source_prefix)

    def plain(self, prompt: str) -> Passage:
        """A text that is no chat, after what the tokenizer puts before texts, which is never doubled."""
        text = prompt.removeprefix(self.begin_text)
        return Passage(text, len(text), begin=self.begin)

    def completion(self, prompt: str) -> Passage:
        """A prompt as it is."""
        self.refuse_system("completion")
        return self.plain((self.source_prefix or "") + prompt)

    def source(self, source: str) -> str:
        """What an encoder reads of a source."""
        return (self.source_prefix or "") + source

    def chat(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The messages with the system prompt, where they have none, and the prefix before what users say."""
        prefix = self.source_prefix
        result = [
            {**message, "content": prefix + message["content"]}
            if prefix and message["role"] == "user"
            else message
            for message in messages
        ]
        if self.system_prompt and (not result or result[0]["role"] not in {"system", "developer"}):
            result.insert(0, {"role": "system", "content": self.system_prompt})
        return result

    def instruction(self, example: Instruction) -> Chat | Passage:
        """A chat of one question, or where there is no chat template, the plain form up to the answer."""
        if self.template is not None:
            about = f"\n\n{example.input}" if example.input else ""
            return Chat([{"role": "user", "content": example.instruction + about}])
        system = f"{self.system_prompt}\n\n" if self.system_prompt else ""
        about = f"### Input:\n{example.input}\n\n" if example.input else ""
        asked = (self.source_prefix or "") + example.instruction
        return self.plain(f"{system}### Instruction:\n{asked}\n\n{about}### Response:\n")

    def chat_template(self) -> ChatTemplate:
        """The template for chats.

        Raises:
            DataError: where neither the recipe nor the tokenizer has one.
        """
        if self.template is None:
            raise DataError(
                "the tokenizer has no chat template; set data.chat_template, or use `type: completion`"
            )
        return self.template

    def refuse_system(self, format: str) -> None:  # noqa: A002 — the recipe's own word
        """Refuse a system prompt where the format has no place for it."""
        if self.system_prompt:
            raise RecipeError(
                f"data.system_prompt: type '{format}' has no place for it; remove it, or use type 'chat'"
            )

    def refuse_prefix(self, format: str) -> None:  # noqa: A002 — the recipe's own word
        """Refuse a source prefix where the format has no prompt."""
        if self.source_prefix:
            raise RecipeError(
                f"data.source_prefix: type '{format}' has no prompt to put it before; remove it"
            )


def prompt_ids(
    prompt: Prompt,
    *,
    format: str,  # noqa: A002 — the recipe's own word
    tokenizer: Any,
    chat_template: str | None = None,
    system_prompt: str | None = None,
    source_prefix: str | None = None,
) -> list[int]:
    """The tokens to give a model that was trained on rows of `format`.

    Args:
        prompt: What the user says, a chat's messages, or an instruction.
        format: The training rows' format: text, completion, instruction, chat or pairs.
        tokenizer: The base's tokenizer.
        chat_template: As in the recipe.
        system_prompt: As in the recipe.
        source_prefix: As in the recipe.

    Raises:
        DataError: where messages are given to a format that has none, or there is no chat template.
    """
    prompter = Prompter.of(tokenizer, chat_template, system_prompt, source_prefix)
    passage = _prompt(prompter, prompt, format)
    if format == "pairs":
        # An encoder reads a source as a whole, with the special tokens at its end, too.
        ids: list[int] = tokenizer(passage.text, verbose=False)["input_ids"]
        return ids
    return [*passage.begin, *token_ids(tokenizer, [passage.text])[0]]


def prompt_text(
    prompt: Prompt,
    *,
    format: str,  # noqa: A002 — the recipe's own word
    tokenizer: Any,
    chat_template: str | None = None,
    system_prompt: str | None = None,
    source_prefix: str | None = None,
) -> str:
    """The text of `prompt_ids`, special tokens included: to look at, while a model takes the tokens."""
    prompter = Prompter.of(tokenizer, chat_template, system_prompt, source_prefix)
    passage = _prompt(prompter, prompt, format)
    return (prompter.begin_text if passage.begin else "") + passage.text


def _prompt(prompter: Prompter, prompt: Prompt, written: str) -> Passage:
    if isinstance(prompt, str) and written == "text":
        return prompter.plain(prompt)
    if isinstance(prompt, str) and written == "completion":
        return prompter.completion(prompt)
    if isinstance(prompt, str) and written == "pairs":
        return Passage(prompter.source(prompt))
    if isinstance(prompt, Instruction) and written not in {"instruction", "chat"}:
        raise DataError(
            f"an instruction needs type 'instruction', but the rows were '{written}'; give a prompt as text"
        )
    if isinstance(prompt, str) and written == "chat":
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str | Instruction):
        asked = prompter.instruction(Instruction(prompt, "", "") if isinstance(prompt, str) else prompt)
        if isinstance(asked, Passage):
            return asked
        prompt = asked.messages
    elif written != "chat" and (written != "instruction" or prompter.template is None):
        raise DataError(f"messages need type 'chat', but the rows were '{written}'; give a prompt as text")
    return Passage(prompter.chat_template().render(prompter.chat(prompt), prompt=True))
