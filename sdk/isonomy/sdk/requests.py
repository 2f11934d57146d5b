"""What callers pass in: messages in their several shapes, sampling defaults, call ids."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from .canonical import canonical, require_declared, require_finite
from .errors import InputError
from .generation import Sampling
from .vocabulary import Call, Document, Message, Text


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


def checked(sampling: Sampling) -> Sampling:
    """Return `sampling`.

    Raises:
        InputError: a value is of the wrong type, not finite, or no unsigned 64-bit seed.
    """
    require_declared(sampling)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        require_finite(getattr(sampling, name), f"sampling.{name}")
    if sampling.seed is not None and not 0 <= sampling.seed < 1 << 64:
        raise InputError(f"sampling.seed must be from 0 to 2**64 - 1, not {sampling.seed}.")
    return sampling


def as_documents(documents: Any) -> tuple[Document, ...]:
    """Return retrieved documents.

    Raises:
        InputError: one of them is no `Document`, or malformed.
    """
    taken = tuple(documents)
    for index, document in enumerate(taken):
        if not isinstance(document, Document):
            raise InputError(
                f"documents[{index}] must be a Document, not {type(document).__name__}."
            )
        require_declared(document)
    return taken


def as_call(**fields: Any) -> Call:
    """Return a call.

    Raises:
        InputError: an id, a name or a tag is no text that UTF-8 can carry.
    """
    call = Call(**fields)
    require_declared(call)
    return call


def as_messages(messages: Any) -> tuple[Message, ...]:
    """Return what a caller passed as messages.

    Raises:
        InputError: empty, of the wrong shape, or text that UTF-8 can't carry.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise InputError("the prompt is empty. Pass some text.")
        parsed: tuple[Message, ...] = (Message.of("user", messages),)
    elif isinstance(messages, Message | bytes | bytearray | memoryview) or not isinstance(
        messages, Sequence
    ):
        raise InputError(
            f"messages must be a string or a list of messages, not {type(messages).__name__}."
        )
    else:
        parsed = tuple(_as_message(message, index) for index, message in enumerate(messages))
    if not parsed:
        raise InputError("there are no messages. Pass at least one.")
    if not any(_says_something(message) for message in parsed):
        raise InputError("every message is empty. Pass some text.")
    canonical(parsed)
    return parsed


def _says_something(message: Message) -> bool:
    return any(not isinstance(part, Text) or part.text.strip() for part in message.content)


def _as_message(message: Any, index: int) -> Message:
    if isinstance(message, Message):
        try:
            require_declared(message)
        except InputError as error:
            raise InputError(f"messages[{index}]: {error}") from None
        return message
    if isinstance(message, dict) and set(message) == {"role", "content"}:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        try:
            return msgspec.convert(
                {"type": "message", "role": message["role"], "content": parts}, Message
            )
        except (msgspec.ValidationError, RecursionError) as error:
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
