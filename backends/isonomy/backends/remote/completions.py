"""The chat-completions format: requests from our vocabulary. Pure functions.

The format is that of https://platform.openai.com/docs/api-reference/chat. Answers are read in
completion_answers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from isonomy.sdk import InputError
from isonomy.sdk.canonical import require_finite
from isonomy.sdk.generation import Sampling
from isonomy.sdk.vocabulary import (
    Audio,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)

from .servers import BESIDE, SEED_BITS

OURS = frozenset(
    {
        "model", "messages", "stream", "tools", "response_format", "temperature", "top_p",
        "max_tokens", "max_completion_tokens", "stop", "seed",
    }
)  # fmt: skip
"""Parameters that `Request.extra` can't hold, because they are said elsewhere."""


def messages_of(
    messages: tuple[Message, ...], *, reasoning: bool = False, official: bool = False
) -> list[dict[str, Any]]:
    """Return messages in the format; a message with several tool results becomes several.

    Args:
        messages: ours.
        reasoning: send back what a model said to itself, as ``reasoning_content``; else it is left
            out.
        official: OpenAI itself is asked, which takes no references to recordings.

    Raises:
        InputError: a message holds a part that its role can't hold.
    """
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        result += _message(index, message, reasoning, official)
    return result


_ALLOWED: dict[str, tuple[type, ...]] = {
    "system": (Text, Json),
    "user": (Text, Json, Image, Audio),
    "assistant": (Text, Json, Reasoning, ToolCall),
    "tool": (ToolResult,),
}


def require_allowed(
    index: int, message: Message, allowed: Mapping[str, tuple[type, ...]] = _ALLOWED
) -> None:
    """Raise `InputError` where a message holds a part that its role can't be sent with."""
    for part in message.content:
        if not isinstance(part, allowed[message.role]):
            can = " or ".join(kind.__name__ for kind in allowed[message.role])
            raise InputError(
                f"message {index} has the role {message.role!r} and holds "
                f"{type(part).__name__}, which the endpoint can't be sent: that role holds {can}. "
                "Move it to a message of its own, or leave it out."
            )


def _message(index: int, message: Message, reasoning: bool, official: bool) -> list[dict[str, Any]]:
    require_allowed(index, message)
    if message.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.id, "content": part.content}
            for part in message.content
            if isinstance(part, ToolResult)
        ]
    if any(isinstance(part, Image | Audio) for part in message.content):
        parts = [_content(index, part, official) for part in message.content]
        return [{"role": "user", "content": parts}]
    text = "".join(written(part) for part in message.content if isinstance(part, Text | Json))
    sent: dict[str, Any] = {"role": message.role, "content": text}
    calls = [_called(part) for part in message.content if isinstance(part, ToolCall)]
    if calls:
        sent |= {"content": text or None, "tool_calls": calls}
    thoughts = [part.text for part in message.content if isinstance(part, Reasoning)]
    if reasoning and thoughts:
        sent["reasoning_content"] = "".join(thoughts)
    return [sent]


def _called(call: ToolCall) -> dict[str, Any]:
    # What the model wrote goes back as it stood, well formed or not.
    arguments = call.malformed or msgspec.json.encode(call.arguments).decode()
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def written(part: Text | Json) -> str:
    """Return a part as the text that stands for it."""
    return part.text if isinstance(part, Text) else msgspec.json.encode(part.value).decode()


def _content(index: int, part: Part, official: bool) -> dict[str, Any]:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.reference}}
    if isinstance(part, Audio):
        held = embedded(part.reference)
        if held is not None:
            kind = held[0].removeprefix("audio/").removeprefix("x-")
            form = {"mpeg": "mp3", "wave": "wav"}.get(kind, kind)
            return {"type": "input_audio", "input_audio": {"data": held[1], "format": form}}
        if official:
            raise InputError(
                f"message {index} refers to a recording that lies elsewhere, which the endpoint "
                "can't be sent. Pass it as data:audio/wav;base64,..."
            )
        return {"type": "audio_url", "audio_url": {"url": part.reference}}
    assert isinstance(part, Text | Json)
    return {"type": "text", "text": written(part)}


def embedded(reference: str) -> tuple[str, str] | None:
    """Return media type and base64 of a ``data:`` URL (RFC 2397), `None` for any other."""
    head, comma, data = reference.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    return head.removeprefix("data:").removesuffix(";base64").partition(";")[0], data


def sampling_of(
    sampling: Sampling,
    *,
    max_tokens_name: str,
    beside: Mapping[str, str],
    seed_bits: int = SEED_BITS,
) -> dict[str, Any]:
    """Return sampling settings as request parameters; `None` leaves one to the endpoint.

    Candidates of one call get seeds that follow each other.

    Args:
        sampling: ours.
        max_tokens_name: of the parameter for `max_tokens`.
        beside: names of settings that the format does not have, by ours.
        seed_bits: how much of a seed the server takes.

    Raises:
        InputError: a setting that the server does not have, or that is no finite number.
    """
    refuse_beside(sampling, beside)
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        max_tokens_name: sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": None
        if sampling.seed is None
        else (sampling.seed + sampling.candidate) % (1 << seed_bits),
        **{name: getattr(sampling, ours) for ours, name in beside.items()},
    }
    for name, value in values.items():
        if isinstance(value, float):
            require_finite(value, name)
    return {name: value for name, value in values.items() if value is not None}


def refuse_beside(sampling: Sampling, beside: Mapping[str, str]) -> None:
    """Raise `InputError` for settings that the server does not have."""
    given = [n for n in BESIDE if n not in beside and getattr(sampling, n) is not None]
    if given:
        raise InputError(
            f"the chat-completions format has no {', '.join(given)}. Leave that out, or, if the "
            "endpoint takes such parameters beside the format (vLLM and llama.cpp do), set "
            "extra_parameters, or server."
        )


def extra_of(extra: Mapping[str, Any], ours: frozenset[str] = OURS) -> dict[str, Any]:
    """Return the provider's own parameters of a request.

    Raises:
        InputError: one of them is said elsewhere in the request.
    """
    for name in ours:
        if name in extra:
            raise InputError(
                f"extra can't hold {name!r}, which has a place of its own in a request: the "
                "messages, the tools, the response format, or the sampling."
            )
    if extra.get("n", 1) != 1:
        raise InputError("extra can't hold 'n': candidates are asked for one by one.")
    return dict(extra)
