"""The messages format of Anthropic: requests from our vocabulary, answers into it. Pure functions.

The format is that of https://docs.anthropic.com/en/api/messages. Answers become parts in the same
way as those of wrapped clients (`isonomy.sdk.wrapping.anthropic_format`); a stream gives the same
content as the answer in one piece. Streams are read strictly: what begins twice, goes on after its
end or belongs to nothing is an error, as the format leaves no room for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from isonomy.sdk import InputError
from isonomy.sdk.canonical import require_finite
from isonomy.sdk.generation import Request, Sampling
from isonomy.sdk.vocabulary import (
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)
from isonomy.sdk.wrapping.anthropic_format import (
    answer_block,
    answer_parts,
    finish_reason_of,
    usage_of,
)

from .answers import Answer, CutOff, InvalidAnswer, Refused, content_of, decoded, tool_call
from .conversation import answered, extra_of, require_allowed, written
from .events import Sent

MAX_TOKENS = 4096
"""The format wants a longest answer; this is it where nobody says otherwise."""
_ALLOWED: dict[str, tuple[type, ...]] = {
    "system": (Text, Json),
    "user": (Text, Json, Image),
    "assistant": (Text, Json, Reasoning, ToolCall),
    "tool": (ToolResult,),
}
_OURS = frozenset(
    {
        "model", "messages", "system", "stream", "tools", "max_tokens", "temperature", "top_p",
        "top_k", "stop_sequences", "n",
    }
)  # fmt: skip
_ABSENT = ("min_p", "repetition_penalty")
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Types of errors and the status they have where they come alone."""


def parameters_of(model: str, request: Request) -> dict[str, Any]:
    """Return a request in the format.

    System messages, wherever they stand, become the `system` parameter, in their order. A seed is
    not sent: the format has none.

    Raises:
        InputError: a part, a setting or a response format that the format does not have.
    """
    sampling = request.sampling
    refuse_absent(sampling)
    extra = extra_of(request.extra, _OURS)
    system, messages = _conversation(request.messages)
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_sequences": list(sampling.stop) or None,
        "system": system or None,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "tool_choice": _choice(
            extra.pop("tool_choice", None), extra.pop("parallel_tool_calls", None)
        ),
        "output_config": _form(request.response_format, extra.pop("output_config", None)),
    }
    for name, value in values.items():
        if isinstance(value, float):
            require_finite(value, name)
    return {
        "model": model,
        "max_tokens": sampling.max_tokens or MAX_TOKENS,
        "messages": messages,
        **{name: value for name, value in values.items() if value is not None},
        **extra,
    }


def refuse_absent(sampling: Sampling) -> None:
    """Raise `InputError` for settings that the format does not have."""
    given = [name for name in _ABSENT if getattr(sampling, name) is not None]
    if given:
        raise InputError(
            f"the messages format has no {', '.join(given)}. Leave that out for this backend."
        )


def _conversation(
    messages: tuple[Message, ...],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(answered(messages)):
        require_allowed(index, message, _ALLOWED)
        blocks = [block for part in message.content for block in _blocks(part, message.role)]
        if message.role == "system":
            system += blocks
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if not blocks:
            continue  # the format refuses turns in which nothing is said
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _blocks(part: Part, role: str) -> list[dict[str, Any]]:
    if role == "assistant" and isinstance(part, Json):
        return [answer_block(part)]  # a block of an answer that we have no word for
    if isinstance(part, Text | Json):
        text = written(part)
        return [{"type": "text", "text": text}] if text else []
    if isinstance(part, Reasoning) and not part.opaque:
        return []  # of another provider: this one takes back only what it has signed
    if isinstance(part, ToolCall) and part.malformed:
        part = ToolCall(part.id, part.name, {"INVALID_JSON": part.malformed})
    return [answer_block(part)]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return dict(tool)  # a tool of the provider's own
    return {
        "name": function.get("name"),
        **{k: function[k] for k in ("description", "strict") if function.get(k) is not None},
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }


def _choice(choice: Any, parallel: Any) -> dict[str, Any] | None:
    """Return which tools may be called, from how the chat-completions format says it, or ours."""
    named = choice.get("function") if isinstance(choice, dict) else None
    if choice == "required":
        chosen: dict[str, Any] | None = {"type": "any"}
    elif isinstance(named, dict):
        chosen = {"type": "tool", "name": named.get("name")}
    elif isinstance(choice, dict):
        chosen = dict(choice)
    elif choice in ("auto", "none"):
        chosen = {"type": choice}
    elif choice is None:
        chosen = None
    else:
        raise InputError(
            f"tool_choice must be 'auto', 'none', 'required' or name a function, not {choice!r}."
        )
    if parallel is False and (chosen is None or chosen["type"] != "none"):
        chosen = {**(chosen or {"type": "auto"}), "disable_parallel_tool_use": True}
    return chosen


def _form(form: Mapping[str, Any] | None, config: Any) -> dict[str, Any] | None:
    if form is None or form.get("type") == "text":
        return config  # type: ignore[no-any-return]
    held = form.get("json_schema")
    schema = held.get("schema") if isinstance(held, Mapping) else None
    if form.get("type") != "json_schema" or not isinstance(schema, Mapping):
        raise InputError(
            f"the messages format has no response format of the type {form.get('type')!r}. Use "
            '{"type": "json_schema", "json_schema": {"schema": ...}}, or ask for it in words.'
        )
    return {**(config or {}), "format": {"type": "json_schema", "schema": schema}}


class _Whole(msgspec.Struct):
    content: list[dict[str, Any]]
    model: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: dict[str, Any] | None = None


def answer_of(body: bytes) -> Answer:
    """Read an answer that came in one piece.

    Raises:
        InvalidAnswer: not JSON, or not of the format.
    """
    return _answer(decoded(body, _Whole, "a message"))


class _Event(msgspec.Struct):
    type: str
    index: int | None = None
    message: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_GROWS = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}
"""Kinds of deltas, and the field that holds what is added."""


class _Block:
    """A block of a stream."""

    def __init__(self, started: dict[str, Any]) -> None:
        self.started = started
        self.open = True
        self.pieces: dict[str, list[str]] = {}

    def add(self, field: str, piece: str) -> None:
        self.pieces.setdefault(field, []).append(piece)

    def finished(self) -> dict[str, Any]:
        block = dict(self.started)
        for field, pieces in self.pieces.items():
            if field != "partial_json":
                block[field] = str(block.get(field) or "") + "".join(pieces)
        if "partial_json" in self.pieces:
            call = tool_call("", "", "".join(self.pieces["partial_json"]))
            block["input"] = call.malformed or call.arguments
        return block


class MessageReader:
    """Reads a streamed answer; see `isonomy.backends.remote.answers.Reader`."""

    def __init__(self) -> None:
        self.ended = False
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}
        self._told: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}

    def push(self, event: Sent) -> str:
        """Take an event and return the text that came with it.

        Raises:
            InvalidAnswer: it is no event of the format, or contradicts an earlier one.
            Refused: it is an error.
        """
        said = decoded(event.data, _Event, "an event of a message")
        if said.type == "error" or event.name == "error":
            error = said.error if isinstance(said.error, dict) else {}
            raise Refused(
                str(error.get("message") or event.data.decode("utf-8", "replace")),
                status=_STATUS.get(str(error.get("type"))),
            )
        if said.type == "message_start":
            if self._message is not None:
                raise InvalidAnswer("the message begins twice")
            self._message = said.message or {}
            self._count(self._message.get("usage"))
        elif said.type == "content_block_start":
            return self._started(said)
        elif said.type == "content_block_delta":
            return self._grown(said)
        elif said.type == "content_block_stop":
            self._at(said).open = False
        elif said.type == "message_delta":
            self._told |= {k: v for k, v in (said.delta or {}).items() if v is not None}
            self._count(said.usage)
        elif said.type == "message_stop":
            self.ended = True
        return ""  # pings, and kinds that are yet to come

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def _started(self, said: _Event) -> str:
        if said.index is None or said.content_block is None or said.index in self._blocks:
            raise InvalidAnswer(f"the block {said.index} begins twice, or is none")
        if said.index != len(self._blocks):
            raise InvalidAnswer(f"the block {said.index} follows {len(self._blocks)} blocks")
        self._blocks[said.index] = _Block(said.content_block)
        text = said.content_block.get("text")
        return text if isinstance(text, str) and said.content_block.get("type") == "text" else ""

    def _at(self, said: _Event) -> _Block:
        block = self._blocks.get(-1 if said.index is None else said.index)
        if block is None or not block.open:
            raise InvalidAnswer(f"the block {said.index} goes on, and is not open")
        return block

    def _grown(self, said: _Event) -> str:
        block, delta = self._at(said), said.delta or {}
        field = _GROWS.get(str(delta.get("type")))
        if field is None:
            return ""  # citations, and kinds that are yet to come
        piece = delta.get(field)
        if not isinstance(piece, str):
            raise InvalidAnswer(f"a {delta.get('type')} without its {field}")
        block.add(field, piece)
        return piece if field == "text" else ""

    def answer(self) -> Answer:
        """Return what was said.

        Raises:
            CutOff: the stream ended before the message did.
        """
        if not self.ended or self._message is None:
            raise CutOff
        finished = {
            **self._message,
            **self._told,
            "content": [block.finished() for block in self._blocks.values()],
            "usage": self._usage,
        }
        try:
            return _answer(msgspec.convert(finished, _Whole))
        except msgspec.ValidationError as error:
            raise InvalidAnswer(f"it is not a message: {error}") from None


def _answer(message: _Whole) -> Answer:
    try:
        parts = list(answer_parts(message.content))
    except (InputError, AttributeError) as error:
        raise InvalidAnswer(str(error)) from None
    runtime: dict[str, Any] = {"usage": message.usage} if message.usage else {}
    if message.stop_reason:
        runtime["stop_reason"] = message.stop_reason
    if message.stop_sequence:
        runtime["stop_sequence"] = message.stop_sequence
    return Answer(
        content=content_of(parts),
        finish_reason=finish_reason_of(message.stop_reason),
        model=message.model,
        usage=usage_of(message.usage),
        runtime=runtime,
    )
