"""What reading an answer has in common, whoever gave it, in one piece or in a stream.

A `Reader` takes the events of a stream and says which text is there; in the end it gives an
`Answer`, or says what is wrong with what it read. Pure: no I/O, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from isonomy.sdk.generation import Usage
from isonomy.sdk.vocabulary import Audio, Json, Part, Reasoning, Text, ToolCall
from isonomy.sdk.wrapping.openai_format import tool_call_of

from .events import Sent
from .pieces import clean, whole

T = TypeVar("T")


class InvalidAnswer(Exception):
    """An answer does not have the format; the message says where."""


class CutOff(Exception):
    """A stream ended before the answer did."""


class Refused(Exception):
    """The endpoint told of an error in the middle of a stream; `status` is what it amounts to."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says, in our words.

    `model` is `None` where it does not say. `runtime` is evidence that does not matter to the
    result.
    """

    content: tuple[Part, ...]
    finish_reason: str
    model: str | None
    usage: Usage
    runtime: dict[str, Any] = {}


class Reader(Protocol):
    """Reads one answer of a stream. `ended` is true when it has said that it is complete."""

    ended: bool

    def push(self, event: Sent) -> str:
        """Take an event and return the text that came with it.

        Raises:
            InvalidAnswer: it does not have the format, or contradicts an earlier one.
            Refused: it is an error.
        """
        ...

    def answer(self) -> Answer:
        """Return what was said.

        Raises:
            CutOff: it is not complete.
        """
        ...


def decoded(body: bytes, kind: type[T], what: str) -> T:
    """Decode JSON strictly where we read it.

    Broken UTF-8 and lone surrogates, which are no JSON but are sent all the same, are let through:
    the text that holds them is made whole later (pieces.py).

    Raises:
        InvalidAnswer: it is no JSON, or not of the kind.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        problem = f"it is not {what}: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return msgspec.convert(json.loads(body.decode("utf-8", "replace")), kind)
        except msgspec.ValidationError as error:
            problem = f"it is not {what}: {error}"
        except (ValueError, RecursionError) as error:
            problem = f"it is not JSON: {error}"
    raise InvalidAnswer(problem)


def tool_call(id: str, name: str, written: str) -> ToolCall:
    """Return a tool call from its arguments as the model wrote them, in pieces or whole."""
    return tool_call_of(id, name, whole(written))


def content_of(parts: list[Part]) -> tuple[Part, ...]:
    """Return the parts of an answer: neighbouring texts in one, empty ones left out.

    Where nothing was said, an empty text stands.
    """
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text):
            if not part.text:
                continue
            if joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + part.text)
                continue
        joined.append(part)
    if all(isinstance(part, Reasoning) for part in joined):
        joined.append(Text(""))
    return tuple(joined)


def cleaned(content: tuple[Part, ...], secrets: Mapping[str, str]) -> tuple[Part, ...]:
    """Return parts with whole text and without secrets."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return clean(value, secrets)
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {plain(key): plain(item) for key, item in value.items()}
        return value

    def part_of(part: Part) -> Part:
        if isinstance(part, Text):
            return Text(plain(part.text))
        if isinstance(part, Reasoning):
            return Reasoning(plain(part.text), plain(part.opaque))
        if isinstance(part, ToolCall):
            return ToolCall(
                plain(part.id), plain(part.name), plain(part.arguments), plain(part.malformed)
            )
        if isinstance(part, Json):
            return Json(plain(part.value))
        if isinstance(part, Audio):
            return Audio(plain(part.reference), plain(part.media_type))
        return part

    return tuple(part_of(part) for part in content)
