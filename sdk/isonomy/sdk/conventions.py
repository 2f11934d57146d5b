"""What a guarded call is called in OpenTelemetry: names of spans, and their attributes.

One set of names for spans that are made while a call is performed (`isonomy.plugins.Telemetry`) and
for those that are made from its record afterwards (`isonomy.replay.interchange.otel`). What
concerns models has the names of the semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); our own begin with ``isonomy.``. Pure
functions; nothing here needs OpenTelemetry.

No content is in what they return, except where `content` is asked for or a function says so; error
messages, which may quote content, never are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .events import BackendFailed, Event, Failed, Generated
from .generation import Identity, Sampling
from .records import Output
from .vocabulary import Message, Part, Reasoning, Text, ToolCall, ToolResult

Attributes = dict[str, Any]
SCOPE = "isonomy"
"""The name of the instrumentation scope."""
CALL = "isonomy.call"
"""The name of a call's span."""
JUDGEMENTS = ("judged", "failed", "critiqued", "revised", "ranked")
"""Types of events that are spans of a check."""


def call_attributes(
    *, call_id: str, session: str, tags: Mapping[str, str], messages: Iterable[Message] = ()
) -> Attributes:
    """Return what is known of a call when it begins.

    Args:
        call_id: its id.
        session: its session; what a call without one has (its id) is not told.
        tags: as given.
        messages: the caller's, where content is wanted.
    """
    attributes: Attributes = {"isonomy.call.id": call_id}
    if session != call_id:
        attributes["gen_ai.conversation.id"] = session
    attributes |= {f"isonomy.tag.{name}": value for name, value in tags.items()}
    if said := [message_of(message) for message in messages]:
        attributes["gen_ai.input.messages"] = written(said)
    return attributes


def end_attributes(
    *,
    verdict: str | None,
    error: str | None,
    output: Output | None = None,
    finish_reason: str | None = None,
    content: bool = False,
) -> Attributes:
    """Return what is known of a call when it has ended; `error` is the type of what ended it."""
    attributes: Attributes = {}
    if verdict is not None:
        attributes["isonomy.verdict"] = verdict
    if error is not None:
        attributes["error.type"] = error
    if output is not None and output.check is not None:
        attributes["isonomy.check.id"] = output.check
    if output is not None and content:
        said = {"role": "assistant", "parts": parts_of(output.content)}
        finished = {"finish_reason": finish_reason or "unknown"}
        attributes["gen_ai.output.messages"] = written([said | finished])
    return attributes


def model_attributes(event: Generated | BackendFailed, identity: Identity | None) -> Attributes:
    """Return who was asked, and who answered: what tells operations on models apart.

    Args:
        event: of the model's answer, or of its failure.
        identity: of the call's own backend, where known.
    """
    own = identity if event.backend is None else None
    attributes: Attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": own.provider if own is not None else event.backend or "unknown",
    }
    model = own.model if own is not None else None
    if isinstance(event, Generated):
        attributes["gen_ai.response.model"] = event.generation.model
        model = model or event.generation.model
    else:
        attributes["error.type"] = event.error
    if model:
        attributes["gen_ai.request.model"] = model
    return attributes | _server(own)


def model_span(attributes: Mapping[str, Any]) -> str:
    """Return the name of a model's span, from its `model_attributes`."""
    model = attributes.get("gen_ai.request.model")
    return f"chat {model}" if model else "chat"


def answer_attributes(event: Generated | BackendFailed, *, content: bool = False) -> Attributes:
    """Return what a model's span says beyond `model_attributes`: how it was asked, what it took."""
    attributes = {**place_of(event), "isonomy.purpose": event.purpose}
    if isinstance(event, Generated):
        generation = event.generation
        for kind, count in usage_of(event):
            attributes[f"gen_ai.usage.{kind}_tokens"] = count
        attributes["gen_ai.response.finish_reasons"] = [generation.finish_reason]
        attributes |= _asked(event.sampling)
        if content:
            attributes["gen_ai.output.messages"] = written(
                [{"role": "assistant", "parts": parts_of(generation.content)}]
            )
    return attributes


def usage_of(event: Generated) -> list[tuple[str, int]]:
    """Return the token counts that the model told: ``input`` and ``output``."""
    usage = event.generation.usage
    counts = (("input", usage.input_tokens), ("output", usage.output_tokens))
    return [(kind, count) for kind, count in counts if count is not None]


def check_attributes(event: Event) -> Attributes:
    """Return what a check's span says: where it was asked, about what, and what it said."""
    attributes = place_of(event)
    verdict = event.became if isinstance(event, Failed) else _verdict(event)
    if verdict is not None:
        attributes["isonomy.verdict"] = verdict
    if isinstance(event, Failed):
        attributes["error.type"] = event.error
    attributes["isonomy.shadow"] = bool(getattr(event, "shadow", False))
    if (target := getattr(event, "target", None)) is not None:
        attributes["isonomy.target"] = target
    return attributes


def check_span(event: Event) -> str:
    """Return the name of a check's span."""
    return f"check {event.check}" if event.check else f"check at {event.stage}"


def place_of(event: Event) -> Attributes:
    """Return where in the call an event happened."""
    place: Attributes = {"isonomy.stage": event.stage, "isonomy.round": event.round}
    if event.check is not None:
        place["isonomy.check.id"] = event.check
    return place


def message_of(message: Message) -> Attributes:
    """Return a message in the form of the semantic conventions: content."""
    return {"role": message.role, "parts": parts_of(message.content)}


def parts_of(content: tuple[Part, ...]) -> list[Attributes]:
    """Return content in the form of the semantic conventions; other parts by their kind only."""
    made: list[Attributes] = []
    for part in content:
        if isinstance(part, Text):
            made.append({"type": "text", "content": part.text})
        elif isinstance(part, Reasoning):
            made.append({"type": "reasoning", "content": part.text})
        elif isinstance(part, ToolCall):
            call = {"id": part.id, "name": part.name, "arguments": part.arguments}
            made.append({"type": "tool_call", **call})
        elif isinstance(part, ToolResult):
            made.append({"type": "tool_call_response", "id": part.id, "response": part.content})
        else:
            made.append({"type": str(part.__struct_config__.tag)})
    return made


def written(messages: Iterable[Attributes]) -> str:
    """Return messages as the text that stands in an attribute: JSON."""
    return json.dumps(list(messages), ensure_ascii=False)


def _verdict(event: Any) -> str | None:
    verdict = getattr(event, "verdict", None)
    return None if verdict is None else verdict.name


def _server(identity: Identity | None) -> Attributes:
    """Return which host was asked, of a remote model."""
    url = identity.options.get("base_url") if identity is not None else None
    if not isinstance(url, str):
        return {}
    parts = urlsplit(url)
    found: Attributes = {"server.address": parts.hostname, "server.port": parts.port}
    return {name: value for name, value in found.items() if value is not None}


def _asked(sampling: Sampling) -> Attributes:
    """Return how an answer was drawn."""
    asked: Mapping[str, Any] = {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.stop_sequences": list(sampling.stop) or None,
        "isonomy.candidate": sampling.candidate,
    }
    return {name: value for name, value in asked.items() if value is not None}
