"""The chat-completions format: requests from our vocabulary. Pure functions.

The format is that of https://platform.openai.com/docs/api-reference/chat. Answers are read in
completion_answers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from isonomy.sdk.wrapping.openai_format import arguments_of

from .conversation import answered, embedded, require_allowed, written
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

    Tool calls that nothing answers are said not to have been run.

    Args:
        messages: ours.
        reasoning: send back what a model said to itself, as ``reasoning_content``; else it is left
            out.
        official: OpenAI itself is asked, which takes no references to recordings.

    Raises:
        InputError: a message holds a part that its role can't hold.
    """
    result: list[dict[str, Any]] = []
    for index, message in enumerate(answered(messages)):
        result += _message(index, message, reasoning, official)
    return result


_ALLOWED: dict[str, tuple[type, ...]] = {
    "system": (Text, Json),
    "user": (Text, Json, Image, Audio),
    "assistant": (Text, Json, Reasoning, ToolCall),
    "tool": (ToolResult,),
}


def _message(index: int, message: Message, reasoning: bool, official: bool) -> list[dict[str, Any]]:
    require_allowed(index, message, _ALLOWED)
    if message.role == "tool":
        return [
            {"role": "tool", "tool_call_id": part.id, "content": part.content}
            for part in message.content
            if isinstance(part, ToolResult)
        ]
    if message.role == "user" and any(_is_content(part) for part in message.content):
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
    function = {"name": call.name, "arguments": arguments_of(call)}
    return {"id": call.id, "type": "function", "function": function}


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
    if isinstance(part, Json) and _is_content(part):
        return dict(part.value)
    return {"type": "text", "text": written(part)}


def _is_content(part: Part) -> bool:
    """Return whether a part can't be said in words.

    That is so too of JSON that is a content part of the format, such as ``{"type": "file", "file":
    ...}``, of a kind that the vocabulary has no word for.
    """
    if isinstance(part, Json) and isinstance(part.value, dict):
        kind = part.value.get("type")
        return isinstance(kind, str) and kind in part.value
    return isinstance(part, Image | Audio)


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
