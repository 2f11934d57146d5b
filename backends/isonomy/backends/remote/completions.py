"""The chat-completions format: requests from our vocabulary, answers into it. Pure functions.

The format is that of https://platform.openai.com/docs/api-reference/chat. Answers are decoded
strictly where we read them and tolerantly where we don't: fields we do not know are ignored, a
field of the wrong type is an error that names its path.
"""

from __future__ import annotations

from typing import Any

import msgspec

from isonomy.sdk import InputError
from isonomy.sdk.canonical import require_finite
from isonomy.sdk.generation import Sampling, Usage
from isonomy.sdk.vocabulary import Image, Message, Part, Text, ToolCall, ToolResult

NOT_STANDARD = ("top_k", "min_p", "repetition_penalty")
"""Sampling settings that the format does not have; some servers take them beside it."""
SEED_BITS = 63
"""The format's seeds are signed 64-bit integers."""


class InvalidAnswer(Exception):
    """An answer does not have the format; the message says where."""


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    type: str = "function"
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says, in our words. `model` is `None` where it does not say."""

    content: tuple[Part, ...]
    finish_reason: str
    model: str | None
    usage: Usage


def messages_of(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return messages in the format; a message with several tool results becomes several.

    Raises:
        InputError: a message holds a part that its role can't hold.
    """
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        result += _message(index, message)
    return result


_ALLOWED: dict[str, tuple[type, ...]] = {
    "system": (Text,),
    "user": (Text, Image),
    "assistant": (Text, ToolCall),
    "tool": (ToolResult,),
}


def _message(index: int, message: Message) -> list[dict[str, Any]]:
    for part in message.content:
        if not isinstance(part, _ALLOWED[message.role]):
            can = " or ".join(kind.__name__ for kind in _ALLOWED[message.role])
            raise InputError(
                f"message {index} has the role {message.role!r} and holds "
                f"{type(part).__name__}, which the endpoint can't be sent: that role holds {can}. "
                "Move it to a message of its own."
            )
    if message.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.id, "content": part.content}
            for part in message.content
            if isinstance(part, ToolResult)
        ]
    calls = [
        {
            "id": part.id,
            "type": "function",
            "function": {
                "name": part.name,
                "arguments": msgspec.json.encode(part.arguments).decode(),
            },
        }
        for part in message.content
        if isinstance(part, ToolCall)
    ]
    if calls:
        return [{"role": "assistant", "content": message.text or None, "tool_calls": calls}]
    if any(isinstance(part, Image) for part in message.content):
        return [{"role": "user", "content": [_content(part) for part in message.content]}]
    return [{"role": message.role, "content": message.text}]


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.reference}}
    assert isinstance(part, Text)
    return {"type": "text", "text": part.text}


def sampling_of(
    sampling: Sampling, *, max_tokens_name: str, extra_parameters: bool
) -> dict[str, Any]:
    """Return sampling settings as request parameters; `None` leaves one to the endpoint.

    Candidates of one call get seeds that follow each other.

    Raises:
        InputError: a setting that the format does not have (unless `extra_parameters`), or that is
        no finite number.
    """
    refuse_extra(sampling, extra_parameters)
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        max_tokens_name: sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": None
        if sampling.seed is None
        else (sampling.seed + sampling.candidate) % (1 << SEED_BITS),
    }
    extra = {name: getattr(sampling, name) for name in NOT_STANDARD}
    for name, value in (*values.items(), *extra.items()):
        if isinstance(value, float):
            require_finite(value, name)
    parameters = {name: value for name, value in values.items() if value is not None}
    extra = {name: value for name, value in extra.items() if value is not None}
    return {**parameters, "extra_body": extra} if extra else parameters


def refuse_extra(sampling: Sampling, extra_parameters: bool) -> None:
    """Raise `InputError` for settings that the format does not have, unless they are wanted."""
    given = [name for name in NOT_STANDARD if getattr(sampling, name) is not None]
    if given and not extra_parameters:
        raise InputError(
            f"the chat-completions format has no {', '.join(given)}. Leave that out, or, if the "
            "endpoint takes such parameters beside the format (vLLM and llama.cpp do), set "
            "extra_parameters."
        )


def answer_of(body: str) -> Answer:
    """Read an answer.

    A refusal that the endpoint sends beside the content becomes the text, with the finish reason
    ``refusal``.

    Raises:
        InvalidAnswer: not JSON, not of the format, or an error in the place of an answer.
    """
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except msgspec.ValidationError as error:
        raise InvalidAnswer(f"it is not a chat completion: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidAnswer(f"it is not JSON: {error}") from None
    if not completion.choices:
        said = completion.error
        if isinstance(said, dict):
            said = said.get("message")
        raise InvalidAnswer(f"it holds an error: {said}" if said else "it holds no choices")
    choice = completion.choices[0]
    message = choice.message
    text = message.content
    if isinstance(text, list):
        text = "".join(str(part.get("text", "")) for part in text if part.get("type") == "text")
    finish_reason = choice.finish_reason or "unknown"
    if not text and message.refusal:
        text, finish_reason = message.refusal, "refusal"
    calls = tuple(_tool_call(i, call) for i, call in enumerate(message.tool_calls or ()))
    usage = completion.usage or _Usage()
    # An empty text stands where nothing else was said; beside tool calls it says nothing.
    said_text: tuple[Part, ...] = (Text(text or ""),) if text or not calls else ()
    return Answer(
        content=(*said_text, *calls),
        finish_reason=finish_reason,
        model=completion.model,
        usage=Usage(usage.prompt_tokens, usage.completion_tokens),
    )


def _tool_call(index: int, call: _Call) -> ToolCall:
    where = f"$.choices[0].message.tool_calls[{index}]"
    if call.function is None:
        raise InvalidAnswer(f"a tool call of type {call.type!r}, not a function - at `{where}`")
    try:
        # Some endpoints write no arguments as an empty string.
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidAnswer(
            f"the arguments of the tool call {call.function.name!r} are no JSON object: {error} - "
            f"at `{where}.function.arguments`"
        ) from None
    return ToolCall(call.id, call.function.name, arguments)
