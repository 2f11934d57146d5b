"""The chat-completions format and our vocabulary, in both directions: answers and streams.

The other half of openai_format.py: choices, completions, chunks, usage, as plain JSON data. Pure
functions, and `Folded`, which puts a stream's chunks together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..generation import Usage
from ..vocabulary import Candidate, Message, Part, Text, text_of
from .openai_format import EVERY_KIND, item_of, message_of

BLOCKED = "content_filter"
"""The finish reason of an answer that a policy refused."""
CUT = "unknown"
"""Our finish reason where the provider gave none: it stopped before it was done."""
_IN_MESSAGE = frozenset(("role", "content", "refusal", "tool_calls", "function_call", "audio"))


def candidate_of(choice: Mapping[str, Any], index: int = 0) -> Candidate:
    """Read a choice of a completion.

    Where nothing at all was said the content is one empty text. Parts of a kind that is not known
    are `Json`.

    Raises:
        InputError: it holds what is not known here.
    """
    message = choice.get("message") or {}
    where = f"choices[{choice.get('index', index)}].message"
    said = message_of({**message, "role": "assistant"}, where=where, carry=EVERY_KIND).content
    return Candidate(
        index=index,
        content=_without_empty(said) or (Text(""),),
        finish_reason=choice.get("finish_reason") or CUT,
    )


def _without_empty(content: tuple[Part, ...]) -> tuple[Part, ...]:
    """Beside other parts an empty text says nothing."""
    return tuple(part for part in content if not isinstance(part, Text) or part.text)


def choice_of(
    candidate: Candidate, original: Mapping[str, Any] | None = None, *, index: int | None = None
) -> dict[str, Any]:
    """Return a choice that says what a candidate says.

    Args:
        candidate: what is released.
        original: the provider's choice that it was made of. What did not change stays as it stands
            there. Log-probabilities belong to the text that they were given with and are dropped,
            and so are fields of the message that are not known here.
        index: the choice's number; the candidate's own unless given.
    """
    message: dict[str, Any] | None = None
    if original is not None:
        known = original.get("message") or {}
        message = {name: known[name] for name in known if name in _IN_MESSAGE}
        message["role"] = "assistant"
        kept = message_of(message, where="message", carry=EVERY_KIND).content
        if _without_empty(kept) != _without_empty(candidate.content):
            message.pop("audio", None)
    item = item_of(Message("assistant", candidate.content), message)[0]
    item.setdefault("refusal", None)
    number = candidate.index if index is None else index
    return {
        "index": number,
        "message": item,
        "logprobs": None,
        "finish_reason": candidate.finish_reason,
    }


def completion_of(
    *, id: str, created: int, model: str, choices: Sequence[Mapping[str, Any]], usage: Usage
) -> dict[str, Any]:
    """Return the body of an answer."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": usage_json(usage),
    }


def chunk_of(
    *,
    id: str,
    created: int,
    model: str,
    delta: Mapping[str, Any] | None = None,
    index: int = 0,
    finish_reason: str | None = None,
    usage: Usage | None = None,
) -> dict[str, Any]:
    """Return one chunk of a stream: a delta of a choice, or (no delta) the usage at its end."""
    choice = {
        "index": index,
        "delta": dict(delta or {}),
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    chunk: dict[str, Any] = {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [] if delta is None else [choice],
    }
    if usage is not None:
        chunk["usage"] = usage_json(usage)
    return chunk


def delta_of(content: Iterable[Part]) -> dict[str, Any]:
    """Return the delta that says all of a content at once; its tool calls are numbered."""
    parts = tuple(content)
    item = item_of(Message("assistant", parts))[0]
    delta = {name: value for name, value in item.items() if name != "role" and value}
    if isinstance(delta.get("content"), list):
        delta["content"] = text_of(parts)
    if "tool_calls" in delta:
        delta["tool_calls"] = [
            {"index": number, **call} for number, call in enumerate(delta["tool_calls"])
        ]
    return delta


def usage_of(usage: Any) -> Usage:
    """Read a usage; what it does not say is `None`."""
    if not isinstance(usage, Mapping):
        return Usage()

    def count(name: str) -> int | None:
        value = usage.get(name)
        return value if type(value) is int else None

    return Usage(count("prompt_tokens"), count("completion_tokens"))


def usage_json(usage: Usage) -> dict[str, int]:
    """Return a usage in the format, which can't leave a count open: unknown is 0 there."""
    asked, answered = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


class Folded:
    """What the chunks of a stream come to: the choices of a completion, as JSON data.

    Chunks are added in order; lists of tool calls are joined by their ``index``, texts by appending
    them. Fields that are not known here are left out.
    """

    def __init__(self) -> None:
        self.choices: dict[int, dict[str, Any]] = {}
        self.usage: Any = None
        self.model: str | None = None
        self.fingerprint: str | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in one chunk."""
        self.usage = chunk.get("usage") or self.usage
        self.model = chunk.get("model") or self.model
        self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
        for given in chunk.get("choices") or ():
            index = given.get("index") or 0
            choice = self.choices.setdefault(index, {"index": index, "message": {}})
            if given.get("finish_reason"):
                choice["finish_reason"] = given["finish_reason"]
            _fold(choice["message"], given.get("delta") or {})

    def choice(self, index: int = 0) -> dict[str, Any]:
        """Return a choice as it stands; an empty one where no chunk spoke of it."""
        return self.choices.get(index, {"index": index, "message": {}})

    def completed(self) -> list[dict[str, Any]]:
        """Return all choices, in order."""
        return [self.choices[index] for index in sorted(self.choices)]


def _fold(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if value is None or name == "role":
            continue
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for call in value:
                place = call.get("index")
                if not isinstance(place, int) or not 0 <= place <= len(calls):
                    place = len(calls)  # servers that do not number them send each in one piece
                if place == len(calls):
                    calls.append({"type": "function"})
                _fold_call(calls[place], call)
        elif name == "function_call":
            _fold_text(message.setdefault("function_call", {"name": "", "arguments": ""}), value)
        elif name == "audio" and isinstance(value, Mapping):
            _fold_text(message.setdefault("audio", {}), value)
        elif name == "content" and isinstance(value, str) and isinstance(message.get(name), list):
            message[name].append({"type": "text", "text": value})
        elif isinstance(value, str):
            message[name] = message.get(name, "") + value
        elif name == "content" and isinstance(value, list):
            _fold_parts(message, value)


def _fold_parts(message: dict[str, Any], parts: list[Any]) -> None:
    """Some servers stream parts. Once there is one that is no text, the content is a list."""
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        held = message.get("content") or ""
        if part.get("type") == "text" and isinstance(text, str) and isinstance(held, str):
            message["content"] = held + text
            continue
        if isinstance(held, str):
            held = [{"type": "text", "text": held}] if held else []
        message["content"] = [*held, part]


def _fold_call(call: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name in ("id", "type"):
        if delta.get(name):
            call[name] = delta[name]
    for name in ("function", "custom"):
        if isinstance(delta.get(name), Mapping):
            _fold_text(call.setdefault(name, {}), delta[name])


def _fold_text(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if isinstance(value, str) and name != "id":
            into[name] = into.get(name, "") + value
        elif value is not None:
            into[name] = value
