"""Conversations as providers want them, whatever their format. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from isonomy.sdk import InputError
from isonomy.sdk.vocabulary import Json, Message, Text, ToolCall, ToolResult

NOT_RUN = "This tool was not run."


def answered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return messages in which every tool call that something follows has a result.

    Providers refuse a conversation that goes on without one; a retry does, for example.
    """
    results = {
        part.id for message in messages for part in message.content if isinstance(part, ToolResult)
    }
    told: list[Message] = []
    left: list[str] = []
    for message in messages:
        if left and message.role != "assistant":
            told.append(Message("tool", tuple(ToolResult(id, NOT_RUN) for id in left)))
            left = []
        if message.role == "assistant":
            calls = (part for part in message.content if isinstance(part, ToolCall))
            left += [call.id for call in calls if call.id not in results]
        told.append(message)
    return tuple(told)


def require_allowed(index: int, message: Message, allowed: Mapping[str, tuple[type, ...]]) -> None:
    """Raise `InputError` where a message holds a part that its role can't be sent with."""
    for part in message.content:
        if not isinstance(part, allowed[message.role]):
            can = " or ".join(kind.__name__ for kind in allowed[message.role])
            raise InputError(
                f"message {index} has the role {message.role!r} and holds "
                f"{type(part).__name__}, which the endpoint can't be sent: that role holds {can}. "
                "Move it to a message of its own, or leave it out."
            )


def written(part: Text | Json) -> str:
    """Return a part as the text that stands for it."""
    return part.text if isinstance(part, Text) else msgspec.json.encode(part.value).decode()


def embedded(reference: str) -> tuple[str, str] | None:
    """Return media type and base64 of a ``data:`` URL (RFC 2397), `None` for any other."""
    head, comma, data = reference.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    return head.removeprefix("data:").removesuffix(";base64").partition(";")[0], data


def extra_of(extra: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """Return the provider's own parameters of a request.

    Args:
        extra: `Request.extra`.
        ours: names that it can't hold.

    Raises:
        InputError: one of them is said elsewhere in the request.
    """
    for name in extra:
        if name in ours:
            raise InputError(
                f"extra can't hold {name!r}, which has a place of its own in a request: the "
                "messages, the tools, the response format, or the sampling."
            )
    if extra.get("n", 1) != 1:
        raise InputError("extra can't hold 'n': candidates are asked for one by one.")
    return dict(extra)
