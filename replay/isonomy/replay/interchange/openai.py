"""Traffic in OpenAI's JSON shapes, as JSON Lines.

Each line says by its keys what it is:

``request``, ``response``
    A pair: the bodies of a request (chat completions, or with ``input`` responses) and of its
    response, or ``error``. Beside them, where known: ``id``, ``started_at``, ``duration_ms``,
    ``session``, ``user``, ``metadata``.
``custom_id``, ``body``
    A request of a batch's input file.
``custom_id``, ``response`` or ``error``
    Its response of the batch's output or error file. Name the input file too; in any order.
``messages``
    A conversation of a fine-tuning file, whose last message is what the model answered.

The formats are those of https://platform.openai.com/docs/api-reference (chat, responses, batch,
fine-tuning). Content of kinds that are not known here is carried as it stands.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import InputError
from isonomy.sdk.generation import Generation, Usage
from isonomy.sdk.wrapping.openai_format import EVERY_KIND, messages_of
from isonomy.sdk.wrapping.openai_responses import Responses
from isonomy.sdk.wrapping.openai_wire import Asked, Chat, InvalidResponse, Wire

from .errors import UnusableFile
from .lines import Line, data_of, line_at, lines_of, opened
from .traffic import PastCall, nanoseconds

SOURCE = "openai"
EXPECTED = (
    "it must be an object with request and response, with custom_id and body or response (batch "
    "files), or with messages (fine-tuning files)"
)
_LONGEST_TAG = 200


class _Place(NamedTuple):
    file: str
    line: Line


class _Asked(NamedTuple):
    """Where the request of a batch stands."""

    file: str
    offset: int
    size: int
    place: str


def past_calls(
    files: Iterable[str | os.PathLike[str]], *, provider: str = "openai"
) -> Iterator[PastCall | UnusableFile]:
    """Yield the calls of files, in order; in place of one that can't be used, why.

    Args:
        files: their paths.
        provider: who answered.

    Raises:
        UnusableFile: a file can't be read.
    """
    names = [os.fspath(file) for file in files]
    requests: dict[str, _Asked] = {}
    for place in _all_lines(names):
        if isinstance(place, UnusableFile) or b'"custom_id"' not in place.line.body:
            continue
        try:
            data = data_of(place.line.body)
        except ValueError:
            continue  # told of below
        if isinstance(data, dict) and "body" in data and isinstance(data.get("custom_id"), str):
            requests.setdefault(
                data["custom_id"],
                _Asked(place.file, place.line.offset, place.line.size, place.line.place),
            )
    answered: set[str] = set()
    for place in _all_lines(names):
        if isinstance(place, UnusableFile):
            yield place
            continue
        try:
            found = _call_in(place, requests, answered, provider)
        except (ValueError, InputError, InvalidResponse) as error:
            yield UnusableFile(
                f"{str(error).rstrip('.')}.", file=place.file, place=place.line.place
            )
            continue
        if found is not None:
            yield found
    for name, asked in requests.items():
        if name not in answered:
            yield UnusableFile(
                f"the files hold no response to the request {name!r}. Name the batch's output and "
                "error files too.",
                file=asked.file,
                place=asked.place,
            )


def _all_lines(names: Iterable[str]) -> Iterator[_Place | UnusableFile]:
    for name in names:
        with opened(name) as stream:
            for line in lines_of(stream, name):
                yield line if isinstance(line, UnusableFile) else _Place(name, line)


def _call_in(
    place: _Place, requests: dict[str, _Asked], answered: set[str], provider: str
) -> PastCall | None:
    data = data_of(place.line.body)
    if not isinstance(data, dict):
        raise ValueError(EXPECTED)
    if "custom_id" in data:
        return _of_batch(place, data, requests, answered, provider)
    if "request" in data:
        return _of_pair(place, data, provider)
    if "messages" in data:
        return _of_tuning(place, data, provider)
    raise ValueError(f"{EXPECTED}; it has {', '.join(map(repr, list(data)[:8])) or 'no keys'}")


def _of_pair(place: _Place, data: Mapping[str, Any], provider: str) -> PastCall:
    request, response = data["request"], data.get("response")
    error = data.get("error")
    if not isinstance(request, dict):
        raise ValueError("request must be an object: the body of a request")
    if response is None and error is None:
        raise ValueError("response must be an object: the body of a response; or else error")
    began = next(
        (
            data[name]
            for name in ("started_at", "timestamp", "created_at", "created")
            if name in data
        ),
        None,
    )
    if began is not None and nanoseconds(began) is None:
        raise ValueError(f"the time {began!r:.60} is neither ISO 8601 nor seconds since 1970")
    took = data.get("duration_ms")
    if took is not None and (isinstance(took, bool) or not isinstance(took, int | float)):
        raise ValueError(f"duration_ms must be a number, not {took!r:.60}")
    return _call(
        place,
        request,
        response,
        provider=provider,
        id=data.get("id"),
        error=error,
        started_ns=nanoseconds(began),
        duration_ns=None if took is None else max(int(took * 1_000_000), 0),
        session=_text(data.get("session")),
        actor=_text(data.get("user")),
        tags=data.get("metadata"),
    )


def _of_batch(
    place: _Place,
    data: Mapping[str, Any],
    requests: dict[str, _Asked],
    answered: set[str],
    provider: str,
) -> PastCall | None:
    name = data["custom_id"]
    if not isinstance(name, str):
        raise ValueError("custom_id must be text")
    asked = requests.get(name)
    if "body" in data:
        if asked is None or (asked.file, asked.offset) != (place.file, place.line.offset):
            raise ValueError(f"the request {name!r} was there already; custom_id must be unique")
        if not isinstance(data["body"], dict):
            raise ValueError("body must be an object: the body of a request")
        return None
    if asked is None:
        raise ValueError(f"the files hold no request {name!r}. Name the batch's input file too")
    if name in answered:
        raise ValueError(f"the request {name!r} was answered already")
    answered.add(name)
    request = data_of(line_at(asked.file, asked.offset, asked.size))
    response, error = data.get("response"), data.get("error")
    body = None
    if isinstance(response, dict):
        body, status = response.get("body"), response.get("status_code")
        if isinstance(status, int) and status >= 400:
            error, body = body, None
    if body is None and error is None:
        raise ValueError("it has neither a response with a body, nor an error")
    return _call(
        place,
        request["body"],
        body,
        provider=provider,
        id=name,
        error=error,
        tags={"batch_id": data["id"]} if isinstance(data.get("id"), str) else None,
    )


def _of_tuning(place: _Place, data: Mapping[str, Any], provider: str) -> PastCall:
    items = data["messages"]
    messages = messages_of(items, carry=EVERY_KIND)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError(
            "messages must end with what the assistant answered, after at least one other"
        )
    said = dict(items[-1])
    finish = "tool_calls" if said.get("tool_calls") else "stop"
    choice = {"index": 0, "message": said, "finish_reason": finish}
    model = str(data.get("model") or "unknown")
    request = {**{name: data[name] for name in data if name != "messages"}, "model": model}
    return _call(
        place,
        {**request, "messages": list(items[:-1])},
        {"choices": [choice], "model": model},
        provider=provider,
        raw=False,
    )


def _call(
    place: _Place,
    request: dict[str, Any],
    response: Any,
    *,
    provider: str,
    id: Any = None,
    error: Any = None,
    started_ns: int | None = None,
    duration_ns: int | None = None,
    session: str | None = None,
    actor: str | None = None,
    tags: Any = None,
    raw: bool = True,
) -> PastCall:
    wire: Wire = Chat()
    if "messages" not in request and ("input" in request or "prompt" in request):
        wire = Responses()
    elif "messages" not in request:
        raise ValueError("the request has neither messages nor input")
    if response is not None and not isinstance(response, dict):
        raise ValueError("the response must be an object: the body of a response")
    asked = wire.asked({"model": "unknown", **request}, EVERY_KIND)
    answered = response or {}
    failed = error if error is not None else answered.get("error")
    if started_ns is None:
        created = answered.get("created", answered.get("created_at"))
        started_ns = nanoseconds(created)
    return PastCall(
        file=place.file,
        place=place.line.place,
        source=SOURCE,
        id=_text(id) or _text(answered.get("id")) or _digest(place.line.body),
        messages=asked.messages,
        answers=() if failed else _answers(wire, asked, answered, raw),
        error=_said(failed) if failed else None,
        provider=provider,
        model=asked.model,
        sampling=asked.sampling,
        tools=asked.tools,
        response_format=asked.response_format,
        extra=asked.extra,
        started_ns=started_ns,
        duration_ns=duration_ns,
        session=session,
        actor=actor or asked.user,
        tags=_tags(tags) | _tags(request.get("metadata")),
    )


def _answers(
    wire: Wire, asked: Asked, response: dict[str, Any], raw: bool
) -> tuple[Generation, ...]:
    model = response.get("model")
    written = canonical(response).decode() if raw else None
    return tuple(
        Generation(
            content=candidate.content,
            finish_reason=candidate.finish_reason,
            model=model if isinstance(model, str) and model else asked.model,
            # Of all of them together: told once, so that a sum is right.
            usage=Usage(0, 0) if candidate.index else wire.usage(response),
            raw=written,
        )
        for candidate in wire.answers(response)
    )


def _said(error: Any) -> str:
    while isinstance(error, dict):
        error = error.get("error") or error.get("message") or error.get("code") or "unknown"
    return str(error)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _tags(found: Any) -> dict[str, str]:
    """Return labels that are short: tags outlive the erasure of content."""
    if not isinstance(found, dict):
        return {}
    return {
        name: str(value)
        for name, value in found.items()
        if isinstance(value, str | int | float) and len(str(value)) <= _LONGEST_TAG
    }


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
