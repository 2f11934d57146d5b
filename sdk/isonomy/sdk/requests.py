"""What callers pass in: messages in their several shapes, sampling defaults, call ids."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from .canonical import canonical
from .errors import InputError
from .generation import Sampling
from .vocabulary import Message


def merged(first: Sampling | None, second: Sampling) -> Sampling:
    """Return `first` with what it leaves open taken from `second`."""
    if first is None:
        return second
    filled = {
        field.name: getattr(second, field.name)
        for field in msgspec.structs.fields(Sampling)
        if getattr(first, field.name) in (None, ())
    }
    return msgspec.structs.replace(first, **filled)


def as_messages(messages: Any) -> tuple[Message, ...]:
    """Return what a caller passed as messages.

    Raises:
        InputError: empty, of the wrong shape, or text that UTF-8 can't carry.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise InputError("the prompt is empty. Pass some text.")
        parsed: tuple[Message, ...] = (Message.of("user", messages),)
    elif isinstance(messages, Message) or not isinstance(messages, Sequence):
        raise InputError(
            f"messages must be a string or a list of messages, not {type(messages).__name__}."
        )
    else:
        parsed = tuple(_as_message(message, index) for index, message in enumerate(messages))
    if not parsed:
        raise InputError("there are no messages. Pass at least one.")
    canonical(parsed)
    return parsed


def _as_message(message: Any, index: int) -> Message:
    if isinstance(message, Message):
        return message
    if isinstance(message, dict) and set(message) == {"role", "content"}:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        try:
            return msgspec.convert(
                {"type": "message", "role": message["role"], "content": parts}, Message
            )
        except msgspec.ValidationError as error:
            raise InputError(f"messages[{index}]: {error}.") from None
    raise InputError(
        f"messages[{index}] must be a Message or a dictionary with exactly the keys role and "
        f"content, not {message!r:.80}."
    )


def new_call_id() -> str:
    """Return a fresh call id: a UUID of version 7 (RFC 9562), so that ids sort roughly by time."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))
