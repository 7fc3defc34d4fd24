"""`chat`: {messages: [{role, content}]}, or ShareGPT's {conversations: [{from, value}]}.

Other keys of a message go to the chat template as they are where they are text (`name`, `reasoning_content`);
anything else is refused, since dropping it would change what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Chat
from peftcli.errors import DataError, did_you_mean

# Who speaks, in the names that data sets use, and in those that chat templates know.
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}


@row_format(("messages",), ("conversations",))
def chat(row: Mapping[str, Any]) -> Chat:
    """The messages, under the roles and keys that chat templates know."""
    column, messages = next(iter(row.items()))
    if not isinstance(messages, list):
        kind = "null" if messages is None else type(messages).__name__
        raise DataError(f"{column} must be a list of messages, not {kind}")
    if not messages:
        raise DataError(f"{column} is empty")
    return Chat([_message(message, f"{column}[{index}]") for index, message in enumerate(messages)])


def _message(message: Any, what: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise DataError(f"{what} must be an object like {{role, content}}, not {type(message).__name__}")
    # Tables (Parquet, Arrow) give every message every key: null means that a message does not have it.
    given = {key: value for key, value in message.items() if value is not None or key in {"content", "value"}}
    role_key, content_key = ("from", "value") if "from" in given else ("role", "content")
    for key in (role_key, content_key):
        if key not in given:
            raise DataError(f"{what} has no '{key}'; it has {', '.join(map(str, given)) or 'nothing'}")
    role = string(given.pop(role_key), f"{what}.{role_key}")
    if role not in _ROLES:
        raise DataError(f"{what}.{role_key}: unknown role '{role}'; {did_you_mean(role, _ROLES)}")
    content = string(given.pop(content_key), f"{what}.{content_key}")
    return {"role": _ROLES[role], "content": content, **_others(given, what)}


def _others(given: dict[str, Any], what: str) -> dict[str, str]:
    for key, value in given.items():
        if key in {"role", "content", "from", "value"}:
            if value is None:
                continue
            raise DataError(f"{what} mixes role/content with from/value; give one pair")
        if not isinstance(value, str):
            raise DataError(f"{what}.{key} is not text, which is not supported; remove it from the data")
    return {key: string(value, f"{what}.{key}") for key, value in given.items() if value is not None}
