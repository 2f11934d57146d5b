"""Events of OpenAI's streams: what they come to, and events of our own.

A provider's stream is read event by event: how much text each adds to the answer, whether it may
leave when its text is released (it is plain: it says nothing that only the checks of the whole
answer are asked about), and what all of them come to. Where a check changed the answer, what is
left of it is told in events that follow those which have left already. Plain JSON data, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..vocabulary import Candidate, Part, ToolCall
from .openai_answers import BLOCKED, Folded, chunk_of, delta_of

Event = dict[str, Any]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream ends that does not end as the provider's.

    `answers` are the whole answers that are told instead, by their number, and `text` what of the
    first one's text has not left yet; `stopped` says which of them are refusals. `final` is the
    response that they make up, as if it had not been streamed. `usage` says whether the stream is
    to tell its usage, `form` whether the answer must have a form, and may be parsed as it comes.
    """

    answers: Mapping[int, Candidate]
    text: str
    stopped: frozenset[int]
    final: Event
    usage: bool = False
    form: bool = False


class Reader(Protocol):
    """Reads one stream."""

    def take(self, event: Event) -> tuple[str, bool]:
        """Take in an event; return the text that it adds, and whether it is plain."""
        ...

    def response(self) -> Event:
        """Return what the events come to: the response, as if it had not been streamed."""
        ...


class Teller(Protocol):
    """Makes events."""

    named: bool
    """Whether the event's type stands beside its data."""
    done: tuple[str, ...]
    """Data that ends a stream."""

    def saying(self, left: Sequence[Event], text: str) -> list[Event]:
        """Return events that say more text of an answer of which `left` has left."""
        ...

    def ending(self, left: Sequence[Event], ending: Ending) -> list[Event]:
        """Return the events that end a stream of which `left` has left."""
        ...

    def without(self, event: Event, answers: Iterable[int]) -> Event | None:
        """Return an event without what it says of some answers, if anything is left."""
        ...


# Chat completions.

_PLAIN_CHUNK = frozenset(
    (
        "choices",
        "created",
        "id",
        "model",
        "obfuscation",
        "object",
        "prompt_filter_results",
        "service_tier",
        "system_fingerprint",
    )
)
_PLAIN_CHOICE = frozenset(
    ("content_filter_offsets", "content_filter_results", "delta", "index", "logprobs")
)
_PLAIN_DELTA = frozenset(("role", "content", "refusal"))


def _nothing_but(known: frozenset[str], given: Mapping[str, Any]) -> bool:
    return all(name in known or not value for name, value in given.items())


class ChatReader:
    """Reads chunks."""

    def __init__(self) -> None:
        self._folded = Folded()
        self._last: Event = {}

    def take(self, event: Event) -> tuple[str, bool]:
        """Take in a chunk."""
        self._folded.add(event)
        if event.get("id"):
            self._last = event
        text, plain = "", _nothing_but(_PLAIN_CHUNK, event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            plain = plain and _nothing_but(_PLAIN_CHOICE, choice)
            plain = plain and _nothing_but(_PLAIN_DELTA, delta)
            for name in ("content", "refusal"):
                said = delta.get(name)
                if isinstance(said, str):
                    text += said
                elif said:
                    plain = False
                    text += "".join(part["text"] for part in said if part.get("type") == "text")
            spoken = delta.get("audio")
            if isinstance(spoken, Mapping) and isinstance(said := spoken.get("transcript"), str):
                plain = False
                text += said
        return text, plain

    def response(self) -> Event:
        """Return the completion that the chunks come to."""
        frame: Event = {
            name: self._last[name]
            for name in ("id", "created", "model", "system_fingerprint", "service_tier")
            if name in self._last
        }
        return {
            **frame,
            "object": "chat.completion",
            "choices": self._folded.completed(),
            "usage": self._folded.usage,
        }


class ChatTeller:
    """Makes chunks."""

    named = False
    done: tuple[str, ...] = ("[DONE]",)

    def saying(self, left: Sequence[Event], text: str) -> list[Event]:
        """Return a chunk that says more text."""
        return [_like(left[-1], {"content": text})] if text else []

    def ending(self, left: Sequence[Event], ending: Ending) -> list[Event]:
        """Return the chunks that end a stream."""
        like = left[-1] if left else ending.final
        told: list[Event] = []
        for index, candidate in ending.answers.items():
            begun = bool(left) and index == 0
            if not begun:
                told.append(_like(like, {"role": "assistant", "content": ""}, index))
            text = ending.text if index == 0 else candidate.text
            if index in ending.stopped and ending.form:
                # In one piece: nobody may try to parse a refusal before he sees that it is one.
                told.append(_like(like, {"content": text}, index, BLOCKED))
                continue
            if text:
                told.append(_like(like, {"content": text}, index))
            calls: list[Part] = [p for p in candidate.content if isinstance(p, ToolCall)]
            if calls and index not in ending.stopped:
                told.append(_like(like, delta_of(calls), index))
            reason = BLOCKED if index in ending.stopped else candidate.finish_reason
            told.append(_like(like, {}, index, reason))
        if ending.usage:
            told.append({**_like(like, None), "usage": ending.final.get("usage")})
        return told

    def without(self, event: Event, answers: Iterable[int]) -> Event | None:
        """Return a chunk without some of its choices."""
        choices = event.get("choices")
        if not choices:
            return None if event.get("usage") else event
        kept = [choice for choice in choices if choice.get("index") not in answers]
        return {**event, "choices": kept} if kept else None


def _like(
    chunk: Event, delta: Event | None, index: int = 0, finish_reason: str | None = None
) -> Event:
    made = chunk_of(
        id=chunk["id"],
        created=chunk["created"],
        model=chunk["model"],
        delta=delta,
        index=index,
        finish_reason=finish_reason,
    )
    for name in ("system_fingerprint", "service_tier"):
        if chunk.get(name):
            made[name] = chunk[name]
    return made


# The responses API.

_LIFE = ("response.created", "response.queued", "response.in_progress")
_FINAL = ("response.completed", "response.incomplete", "response.failed")
_TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")


class ResponsesReader:
    """Reads the events of a response."""

    def __init__(self) -> None:
        self._response: Event = {}
        self._final = False
        self._items: dict[int, Event] = {}

    def take(self, event: Event) -> tuple[str, bool]:
        """Take in an event."""
        kind = event.get("type")
        if kind in _LIFE or kind in _FINAL:
            self._response = event.get("response") or {}
            self._final = kind in _FINAL
            return "", kind in _LIFE and not self._response.get("output")
        place = event.get("output_index")
        if not isinstance(place, int):
            return "", False
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = event.get("item") or {}
            self._items[place] = {**item, "content": list(item.get("content") or ())}
            return "", kind == "response.output_item.added" and not _says_something(item)
        item = self._items.setdefault(place, {"type": "message", "content": []})
        if kind in ("response.content_part.added", "response.content_part.done"):
            part = event.get("part") or {}
            _put(item["content"], event.get("content_index"), dict(part))
            return "", kind == "response.content_part.added" and not _says_something(part)
        delta = event.get("delta")
        if kind in _TEXT_DELTAS and isinstance(delta, str):
            name = "text" if kind == _TEXT_DELTAS[0] else "refusal"
            part = _put(item["content"], event.get("content_index"), None)
            part.setdefault("type", "output_text" if name == "text" else "refusal")
            part[name] = part.get(name, "") + delta
            return delta, True
        if kind == "response.function_call_arguments.delta" and isinstance(delta, str):
            item["arguments"] = item.get("arguments", "") + delta
        return "", False

    def response(self) -> Event:
        """Return the response that the events come to."""
        if self._final:
            return self._response
        output = [_without_void(self._items[place]) for place in sorted(self._items)]
        return {**self._response, "status": "unknown", "output": output}


def _without_void(item: Event) -> Event:
    if item.get("type") == "message" or item["content"]:
        return item
    return {name: value for name, value in item.items() if name != "content"}


def _says_something(given: Mapping[str, Any]) -> bool:
    """Return whether an item or a part that was begun says anything already."""
    if given.get("type") in ("message", "reasoning", "output_text", "refusal", "reasoning_text"):
        return any(given.get(name) for name in ("content", "summary", "text", "refusal"))
    return True


def _put(content: list[Any], index: Any, part: Event | None) -> Event:
    place = index if isinstance(index, int) and 0 <= index < len(content) else len(content)
    if place == len(content):
        content.append({})
    if part is not None:
        content[place] = part
    found: Event = content[place]
    return found


class ResponsesTeller:
    """Makes the events of a response."""

    named = True
    done: tuple[str, ...] = ()

    def saying(self, left: Sequence[Event], text: str) -> list[Event]:
        """Return an event that says more text."""
        telling = _Telling(left)
        telling.say(text)
        return telling.events

    def ending(self, left: Sequence[Event], ending: Ending) -> list[Event]:
        """Return the events that end a stream."""
        telling = _Telling(left)
        final = ending.final
        if not left:
            opened = {**final, "status": "in_progress", "output": [], "usage": None}
            opened["incomplete_details"] = None
            telling.emit("created", response=opened)
            telling.emit("in_progress", response=opened)
        if 0 in ending.stopped:
            if telling.part is None:
                message = final["output"][0]
                telling.open_item(message)
                telling.open_part(message["content"][0])
            telling.say(ending.text)
            telling.close("incomplete")
        else:
            self._items(telling, final["output"], ending.text)
        status = final.get("status")
        kind = status if status in ("completed", "incomplete", "failed") else "completed"
        telling.emit(kind, response={**final, "output": telling.items})
        return telling.events

    def _items(self, telling: _Telling, output: Sequence[Event], text: str) -> None:
        left = text
        for item in output:
            open_one = telling.item is not None and telling.item.get("id") == item.get("id")
            if item.get("type") != "message":
                if item not in telling.items:
                    telling.close()
                    telling.whole(item)
                continue
            if not open_one:
                telling.close()
                telling.open_item(item)
            for number, part in enumerate(item["content"]):
                said = str(part.get("text", part.get("refusal", "")))
                if telling.part is None or number > telling.number:
                    telling.close_part()
                    telling.open_part(part)
                    here = said if left.startswith(said) else left[: len(said)]
                else:
                    here = left[: max(len(said) - len(telling.said), 0)]
                telling.say(here)
                left = left[len(here) :]
            telling.close()
        telling.close()

    def without(self, event: Event, answers: Iterable[int]) -> Event | None:
        """Return nothing: a response has one answer."""
        return None


class _Telling:
    """A stream under way: what is open, and the events that go on from there."""

    def __init__(self, left: Sequence[Event]) -> None:
        self.events: list[Event] = []
        self.items: list[Event] = []
        self.item: Event | None = None
        self.part: Event | None = None
        self.number = -1
        self.said = ""
        self._sequence = 0
        self._index = 0
        for event in left:
            self._see(event)

    def _see(self, event: Event) -> None:
        self._sequence = int(event.get("sequence_number", self._sequence)) + 1
        kind = str(event.get("type"))
        if kind == "response.output_item.added":
            self.item, self.part, self.number = event["item"], None, -1
            self._index = int(event["output_index"])
        elif kind == "response.output_item.done":
            self.items.append(event["item"])
            self.item = self.part = None
        elif kind == "response.content_part.added":
            self.part, self.said = event["part"], ""
            self.number += 1
        elif kind == "response.content_part.done":
            if self.item is not None:
                self.item = {**self.item, "content": [*self.item["content"], event["part"]]}
            self.part = None
        elif kind in _TEXT_DELTAS:
            self.said += event["delta"]

    def emit(self, kind: str, **fields: Any) -> None:
        event = {"type": f"response.{kind}", "sequence_number": self._sequence, **fields}
        self.events.append(event)
        self._see(event)

    def _at(self) -> dict[str, Any]:
        assert self.item is not None
        return {"output_index": self._index, "item_id": self.item.get("id")}

    def open_item(self, item: Event) -> None:
        opened = {**item, "status": "in_progress", "content": []}
        self.emit("output_item.added", output_index=len(self.items), item=opened)

    def open_part(self, part: Event) -> None:
        name = "refusal" if part.get("type") == "refusal" else "text"
        self.emit(
            "content_part.added",
            **self._at(),
            content_index=self.number + 1,
            part={**part, name: ""},
        )

    def say(self, text: str) -> None:
        if not text or self.part is None:
            return
        refusal = self.part.get("type") == "refusal"
        more: dict[str, Any] = {} if refusal else {"logprobs": []}
        kind = "refusal.delta" if refusal else "output_text.delta"
        self.emit(kind, **self._at(), content_index=self.number, delta=text, **more)

    def close_part(self) -> None:
        if self.part is None:
            return
        at = {**self._at(), "content_index": self.number}
        if self.part.get("type") == "refusal":
            self.emit("refusal.done", **at, refusal=self.said)
            part = {**self.part, "refusal": self.said}
        else:
            self.emit("output_text.done", **at, text=self.said, logprobs=[])
            part = {**self.part, "text": self.said}
        self.emit("content_part.done", **at, part=part)

    def close(self, status: str = "completed") -> None:
        if self.item is None:
            return
        self.close_part()
        item = {**self.item, "status": status}
        self.emit("output_item.done", output_index=self._index, item=item)

    def whole(self, item: Event) -> None:
        index = len(self.items)
        opened = {**item, "arguments": ""} if "arguments" in item else item
        self.emit("output_item.added", output_index=index, item=opened)
        if item.get("type") == "function_call":
            said = str(item.get("arguments", ""))
            self.emit("function_call_arguments.delta", **self._at(), delta=said)
            self.emit(
                "function_call_arguments.done",
                **self._at(),
                name=item.get("name"),
                arguments=said,
            )
        self.emit("output_item.done", output_index=index, item=item)
