"""A conversation, turn by turn: what `peftcli generate --chat` holds on a terminal or through a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from peftcli.run.generate import Generator, require_chat

LEAVE = "/exit"
FORGET = "/new"


def converse(
    generator: Generator, turns: Iterable[str], write: Callable[[str], object], say: Callable[[str], object]
) -> list[dict[str, str]]:
    """Answer each turn in the light of all before it, until `/exit` or the end; `/new` begins anew.

    Args:
        generator: a model trained on chats.
        turns: what the user says, one line a turn; blank ones are passed over.
        write: gets the answers, piece by piece, and a line feed after each.
        say: gets what is not part of the conversation.

    Returns:
        The messages since the last beginning.

    Raises:
        RecipeError: the adapter was not trained on chats.
        DataError: the conversation has become longer than what the model takes.
    """
    require_chat(generator)
    messages: list[dict[str, str]] = []
    for line in turns:
        turn = line.strip()
        if turn == LEAVE:
            break
        if turn == FORGET:
            messages.clear()
            say("a new conversation")
            continue
        if not turn:
            continue
        messages.append({"role": "user", "content": turn})
        answer = generator.stream(generator.encode(messages), write)
        write("\n")
        if answer.finish_reason == "length":
            say(f"(cut after {answer.tokens} tokens)")
        messages.append({"role": "assistant", "content": answer.text})
    return messages
