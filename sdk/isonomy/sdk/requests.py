"""What callers pass in: messages in their several shapes, sampling defaults, call ids."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .canonical import canonical, require_declared, require_finite
from .errors import InputError
from .generation import Sampling
from .vocabulary import Call, Document, Message, Text

_VARIANT = "89ab" * 4
"""First digit of a UUID's fourth group, by four random bits."""


def merged(first: Sampling | None, second: Sampling) -> Sampling:
    """Return `first` with what it leaves open taken from `second`."""
    if first is None:
        return second
    filled = {
        name: getattr(second, name)
        for name in Sampling.__struct_fields__
        if getattr(first, name) in (None, ())
    }
    return msgspec.structs.replace(first, **filled)


def checked(sampling: Sampling) -> Sampling:
    """Return a copy of `sampling`.

    Raises:
        InputError: a value is of the wrong type, not finite, or no unsigned 64-bit seed.
    """
    if not isinstance(sampling, Sampling):
        raise InputError(f"sampling must be a Sampling, not {type(sampling).__name__}.")
    own = require_declared(sampling, Sampling)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        require_finite(getattr(sampling, name), f"sampling.{name}")
    if sampling.seed is not None and not 0 <= sampling.seed < 1 << 64:
        raise InputError(f"sampling.seed must be from 0 to 2**64 - 1, not {sampling.seed}.")
    if "" in sampling.stop:
        raise InputError("sampling.stop must hold non-empty strings, not ''.")
    return own


def as_documents(documents: Any) -> tuple[Document, ...]:
    """Return copies of retrieved documents.

    Raises:
        InputError: one of them is no `Document`, or malformed.
    """
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be a list of them, not {type(documents).__name__}.")
    taken = []
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputError(
                f"documents[{index}] must be a Document, not {type(document).__name__}."
            )
        taken.append(require_declared(document, Document))
    return tuple(taken)


def as_response_format(asked: Any) -> dict[str, Any] | None:
    """Return a response format as a record would give it back: a copy that nobody else holds.

    Raises:
        InputError: it is no dictionary of plain JSON data.
    """
    if asked is None:
        return None
    return _as_dictionary(asked, "response_format", "{'type': 'json_object'}")


def as_extra(asked: Any) -> dict[str, Any]:
    """Return a provider's own parameters as a record would give them back.

    Raises:
        InputError: they are no dictionary of plain JSON data.
    """
    return {} if asked is None else _as_dictionary(asked, "extra", "{'tool_choice': 'auto'}")


def as_tools(asked: Any) -> tuple[dict[str, Any], ...]:
    """Return tool definitions as a record would give them back.

    Raises:
        InputError: they are no list of dictionaries of plain JSON data.
    """
    if isinstance(asked, str | bytes | Mapping) or not isinstance(asked, Iterable):
        raise InputError(f"tools must be a list of dictionaries, not {type(asked).__name__}.")
    example = "{'type': 'function', 'function': {'name': ...}}"
    return tuple(
        _as_dictionary(tool, f"tools[{index}]", example) for index, tool in enumerate(asked)
    )


def _as_dictionary(asked: Any, what: str, example: str) -> dict[str, Any]:
    if not isinstance(asked, dict):
        raise InputError(
            f"{what} must be a dictionary such as {example}, not {type(asked).__name__}."
        )
    try:
        _require_json(asked)
        own: dict[str, Any] = msgspec.json.decode(canonical(asked))
    except (InputError, RecursionError, msgspec.DecodeError) as error:
        raise InputError(f"{what}: {error}") from None
    return own


def _require_json(value: Any) -> None:
    """Refuse what JSON would give back as something else."""
    if isinstance(value, float):
        require_finite(value, "a number")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InputError(f"a key must be a string, not {key!r}.")
            _require_json(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_json(inner)
    elif value is not None and not isinstance(value, str | int):
        raise InputError(f"a value must be plain JSON data, not {type(value).__name__}.")


def as_call(**fields: Any) -> Call:
    """Return a call.

    Raises:
        InputError: an id, a name or a tag is no text that UTF-8 can carry.
    """
    if "tags" not in fields and all(v is None or _plain(v) for v in fields.values()):
        return Call(**fields)
    return require_declared(Call(**fields))


def _plain(value: Any) -> bool:
    """Return whether a value is text that needs no look: most are, and looking costs more."""
    return type(value) is str and value.isascii()


def as_messages(messages: Any) -> tuple[Message, ...]:
    """Return copies of what a caller passed as messages.

    Raises:
        InputError: empty, of the wrong shape, or text that UTF-8 can't carry.
    """
    if isinstance(messages, str):
        if not messages or messages.isspace():
            raise InputError("the prompt is empty. Pass some text.")
        parsed: tuple[Message, ...] = (Message.of("user", messages),)
        if _plain(messages):
            return parsed
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
    # Read back, so that what the caller does with his lists and dictionaries reaches nothing.
    return msgspec.json.decode(canonical(parsed), type=tuple[Message, ...])


def _says_something(message: Message) -> bool:
    return any(not isinstance(part, Text) or part.text.strip() for part in message.content)


def _as_message(message: Any, index: int) -> Message:
    if isinstance(message, Message):
        try:
            return require_declared(message, Message)
        except InputError as error:
            raise InputError(f"messages[{index}]: {error}") from None
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
    """Return a fresh call id, such that ids sort roughly by time."""
    return version_7(time.time_ns() // 1_000_000, os.urandom(10))


def version_7(milliseconds: int, random: bytes) -> str:
    """Return the UUID of version 7 (RFC 9562) of a time since 1970 and of 10 random bytes."""
    time_part = f"{milliseconds & (1 << 48) - 1:012x}"
    rest = random[2:].hex()
    # Version 7 in the high bits of the third group, variant 0b10 in those of the fourth.
    return (
        f"{time_part[:8]}-{time_part[8:]}-7{random[:2].hex()[1:]}-"
        f"{_VARIANT[random[2] >> 4]}{rest[1:4]}-{rest[4:]}"
    )
