"""The responses API in our words, and back; a `Wire` (openai_wire.py).

The format is that of https://platform.openai.com/docs/api-reference/responses, as plain JSON data.
Its input is a list of items: messages, calls of tools and what they gave, reasoning. Each becomes
one `Message`; so do ``instructions``, an input that is plain text, and the variables of a stored
prompt. What the provider's own tools did (searches, code, images) is carried as `Json`; what the
application answers in a form that has no text is refused by name, unless it is to be carried.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from ..errors import InputError
from ..generation import Sampling, Usage
from ..vocabulary import (
    Audio,
    Candidate,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from .openai_answers import BLOCKED
from .openai_events import Reader, ResponsesReader, ResponsesTeller, Teller
from .openai_format import (
    EVERY_KIND,
    ROLES,
    Slot,
    arguments_of,
    media_type_of,
    paired,
    plain,
    tool_call_of,
    unknown_part,
)
from .openai_wire import Asked, Body, InvalidResponse
from .rewriting import Item, rewritten

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_PROVIDERS_OWN = frozenset(
    (
        "additional_tools",
        "apply_patch_call",
        "code_interpreter_call",
        "compaction",
        "computer_call",
        "file_search_call",
        "image_generation_call",
        "item_reference",
        "local_shell_call",
        "mcp_approval_request",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "shell_call",
        "tool_search_call",
        "web_search_call",
    )
)
"""Items that the provider made; an application hands them back as it got them."""
SECRETS = ("authorization", "headers")
"""What a tool on another server is given to be let in."""
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_output_tokens": "max_tokens"}
_ELSEWHERE = ("model", "input", "instructions", "tools", "stream")
_KNOWN = frozenset(
    re.findall(
        r"\w+",
        """
        id object created_at completed_at status background billing conversation error
        incomplete_details instructions max_output_tokens max_tool_calls metadata model
        parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_retention
        reasoning safety_identifier service_tier store temperature text tool_choice tools
        top_logprobs top_p truncation usage user
        """,
    )
)
"""What a response says beside its output."""
_REASONS = {"max_output_tokens": "length", "content_filter": BLOCKED}


class Responses:
    """The responses API."""

    path = "/responses"
    teller: Teller = ResponsesTeller()

    def reader(self) -> Reader:
        """Return what reads the events of a response."""
        return ResponsesReader()

    def asked(self, body: Body, carry: Collection[str]) -> Asked:
        """Read the body of a request."""
        items = _items_of(body)
        messages = tuple(Message(*_said(item, where, carry, given=False)) for where, item in items)
        rest = {name: value for name, value in body.items() if name not in _ELSEWHERE}
        text = body.get("text")
        user = body.get("safety_identifier") or body.get("user")
        return Asked(
            model=str(body.get("model") or "default"),
            items=tuple(item for _, item in items),
            messages=messages,
            sampling=_sampling_of(rest),
            tools=tuple(_tool(tool) for tool in body.get("tools") or () if isinstance(tool, dict)),
            response_format=_form(text.get("format") if isinstance(text, Mapping) else None),
            extra=rest,
            user=user if isinstance(user, str) else None,
            stream=body.get("stream") is True,
        )

    def asking(self, body: Body, asked: Asked, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of a request that says `messages`."""
        items = rewritten(asked.items, asked.messages, messages, _written)
        made = {name: body[name] for name in body if name not in ("instructions", "input")}
        if "prompt" in made:
            made["prompt"] = {**made["prompt"], "variables": {}}
        sent: list[Item] = []
        for item in items:
            if item.get("type") == "instructions":
                made["instructions"] = item["content"]
            elif item.get("type") == "prompt":
                made["prompt"]["variables"][item["name"]] = item["value"]
            else:
                sent.append(item)
        if len(sent) == 1 and sent[0].get("type") == "input":
            made["input"] = sent[0]["content"]
        elif sent or "input" in body:
            made["input"] = [_as_message(item) for item in sent]
        return made

    def nested(self, body: Body, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of another request to the same model."""
        items = [item for message in messages for item in _written(message, None)]
        return {
            "input": items,
            **{name: body[name] for name in ("model", "store") if name in body},
        }

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """Return sampling settings as parameters; the API takes no seed."""
        for name in ("stop", "top_k", "min_p", "repetition_penalty"):
            if getattr(sampling, name):
                raise InputError(f"the responses API has no {name}. Leave that out.")
        return {
            name: value
            for name, field in _SAMPLING.items()
            if (value := getattr(sampling, field)) is not None
        }

    def answers(self, response: Body) -> list[Candidate]:
        """Read a response."""
        output = response.get("output")
        if not isinstance(output, list):
            said = response.get("error")
            said = said.get("message") if isinstance(said, dict) else said
            raise InvalidResponse(f"it holds an error: {said}" if said else "it holds no output")
        try:
            content = tuple(slot.part for slot in _given(output))
        except (InputError, AttributeError, TypeError) as error:
            raise InvalidResponse(str(error)) from None
        return [
            Candidate(
                index=0, content=content or (Text(""),), finish_reason=_reason(response, content)
            )
        ]

    def usage(self, response: Body) -> Usage:
        """Read a response's usage."""
        usage = response.get("usage")
        if not isinstance(usage, Mapping):
            return Usage()
        counts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
        return Usage(*(count if type(count) is int else None for count in counts))

    def released(
        self, response: Body, changed: Mapping[int, Candidate], stopped: Collection[int]
    ) -> dict[str, Any]:
        """Return a response with another answer."""
        made = {name: response[name] for name in response if name in _KNOWN}
        candidate = changed[0]
        if 0 not in stopped:
            return {**made, "output": released_output(response["output"], candidate)}
        return made | _stopped(candidate.text, str(response.get("id")), _has_form(response))

    def refused(
        self, body: Body, refusals: Sequence[str], *, id: str, created: int
    ) -> dict[str, Any]:
        """Return a response that was never asked for."""
        details = {"input_tokens_details": {"cached_tokens": 0}}
        details |= {"output_tokens_details": {"reasoning_tokens": 0}}
        echoed = {name: body[name] for name in body if name in _KNOWN and name != "prompt"}
        return {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": created,
            "error": None,
            "instructions": None,
            "metadata": {},
            "model": "default",
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            **echoed,
            "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, **details},
            **_stopped(refusals[0], id, _has_form(body)),
        }


def _stopped(refusal: str, id: str, form: bool) -> dict[str, Any]:
    """Return what makes a response a refusal.

    Where its text must have a form, the refusal stands where the API has it, apart from the text.
    """
    part = (
        {"type": "refusal", "refusal": refusal}
        if form
        else {"type": "output_text", "text": refusal, "annotations": []}
    )
    message = {"id": f"msg_{id}", "type": "message", "role": "assistant", "status": "incomplete"}
    return {
        "status": "incomplete",
        "incomplete_details": {"reason": "content_filter"},
        "output": [{**message, "content": [part]}],
    }


def _has_form(body: Body) -> bool:
    text = body.get("text")
    form = text.get("format") if isinstance(text, Mapping) else None
    return isinstance(form, Mapping) and form.get("type") != "text"


def _reason(response: Body, content: Sequence[Part]) -> str:
    status = response.get("status")
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        return _REASONS.get(str(reason), str(reason or status))
    if status not in (None, "completed"):
        return str(status)
    return "tool_calls" if any(isinstance(part, ToolCall) for part in content) else "stop"


# Requests.


def _items_of(body: Body) -> list[tuple[str, Item]]:
    """Return all that the model is to be told, as items, with what errors call each."""
    items: list[tuple[str, Item]] = []
    instructions, said = body.get("instructions"), body.get("input")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise InputError("instructions must be text.")
        items.append(("instructions", {"type": "instructions", "content": instructions}))
    prompt = body.get("prompt")
    if isinstance(prompt, Mapping):
        items += [
            (f"prompt.variables[{name!r}]", {"type": "prompt", "name": name, "value": value})
            for name, value in (prompt.get("variables") or {}).items()
        ]
    if isinstance(said, str):
        items.append(("input", {"type": "input", "content": said}))
    elif isinstance(said, list | tuple):
        items += [(f"input[{place}]", item) for place, item in enumerate(said)]
    elif said is not None:
        raise InputError(f"input must be text or a list of items, not {type(said).__name__}.")
    return items


def _said(
    item: Any, where: str, carry: Collection[str], *, given: bool
) -> tuple[Role, tuple[Part, ...]]:
    role, slots = item_slots(item, where, carry, given=given)
    return role, tuple(slot.part for slot in slots)


def item_slots(
    item: Any, where: str, carry: Collection[str] = (), *, given: bool = False
) -> tuple[Role, list[Slot]]:
    """Return who says an item, and what it says, part by part.

    Args:
        item: of a request's input or of a response's output.
        where: what errors call it.
        carry: types of items and content parts that are to be carried as `Json`.
        given: it is of the provider's output, where what is not known is carried.

    Raises:
        InputError: naming what can't be used.
    """
    if not isinstance(item, Mapping):
        raise InputError(f"{where} must be a dictionary, not {type(item).__name__}.")
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "instructions":
        return "system", [Slot("content", Text(item["content"]), item["content"])]
    if kind == "input":
        return "user", [Slot("content", Text(item["content"]), item["content"])]
    if kind == "prompt":
        value = item["value"]
        part = Text(value) if isinstance(value, str) else _content_part(value, where, carry, given)
        return "user", [Slot("value", part, value)]
    if kind == "message":
        return _message_slots(item, where, carry, given)
    if kind == "reasoning":
        said = [
            str(part.get("text", ""))
            for name in ("summary", "content")
            for part in item.get(name) or ()
            if isinstance(part, Mapping)
        ]
        part = Reasoning("\n\n".join(said), str(item.get("encrypted_content") or ""))
        return "assistant", [Slot("item", part, item)]
    if kind == "function_call":
        call = tool_call_of(str(item.get("call_id", "")), str(item["name"]), item.get("arguments"))
        return "assistant", [Slot("item", call, item)]
    if kind == "custom_tool_call":
        made = {"input": str(item.get("input", ""))}
        call = ToolCall(str(item.get("call_id", "")), str(item["name"]), made)
        return "assistant", [Slot("item", call, item)]
    if isinstance(kind, str) and (given or kind in _PROVIDERS_OWN or kind in carry):
        role: Role = "tool" if kind.endswith(("_output", "_response")) else "assistant"
        return role, [Slot("item", Json(plain(item, where)), item)]
    if isinstance(kind, str) and kind.endswith("_output") and isinstance(item.get("call_id"), str):
        result = ToolResult(item["call_id"], _output_text(item.get("output"), where))
        return "tool", [Slot("item", result, item)]
    raise unknown_part(where, kind, ("message", "function_call", "function_call_output"))


def _message_slots(
    item: Mapping[str, Any], where: str, carry: Collection[str], given: bool
) -> tuple[Role, list[Slot]]:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}.role must be user, assistant, system or developer.")
    if isinstance(content, str):
        return ROLES[role], [Slot("content", Text(content), content)]
    if not isinstance(content, list | tuple):
        raise InputError(f"{where}.content must be text or a list of parts.")
    slots = [
        Slot("content", _content_part(part, f"{where}.content[{place}]", carry, given), part)
        for place, part in enumerate(content)
    ]
    return ROLES[role], slots


def _content_part(part: Any, where: str, carry: Collection[str], given: bool) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return Text(part["refusal"])
    if kind == "input_image":
        reference = part.get("image_url") or part.get("file_id")
        if isinstance(reference, str):
            return Image(reference, media_type_of(reference, "image/*"))
    held = part.get("input_audio") if kind == "input_audio" else None
    if isinstance(held, Mapping) and isinstance(held.get("data"), str):
        form = str(held.get("format", "*"))
        return Audio(f"data:audio/{form};base64,{held['data']}", f"audio/{form}")
    if isinstance(kind, str) and (given or kind in carry):
        return Json(plain(part, where))
    raise unknown_part(where, kind, ("input_text", "output_text", "refusal", "input_image"))


def _output_text(output: Any, where: str) -> str:
    """Return what a tool of the application answered."""
    if isinstance(output, str):
        return output
    if isinstance(output, list | tuple) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in output
    ):
        return "".join(part["text"] for part in output)
    kind = "output"
    for part in output if isinstance(output, list | tuple) else ():
        kind = part.get("type", kind) if isinstance(part, Mapping) else kind
    raise unknown_part(f"{where}.output", kind, ("text", "a list of input_text"))


def _sampling_of(rest: dict[str, Any]) -> Sampling:
    """Take the sampling settings out of `rest`; what is of the wrong type stays there."""
    found: dict[str, Any] = {}
    for name, field in _SAMPLING.items():
        value = rest.get(name)
        if value is None:
            rest.pop(name, None)
            continue
        try:
            msgspec.convert({field: value}, Sampling)
        except msgspec.ValidationError:
            continue
        found[field] = rest.pop(name)
    return Sampling(**found)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's definition as chat completions have it, for the record: without secrets."""
    if tool.get("type") != "function":
        return {name: "[secret]" if name in SECRETS else value for name, value in tool.items()}
    return {
        "type": "function",
        "function": {name: value for name, value in tool.items() if name != "type"},
    }


def _form(form: Any) -> dict[str, Any] | None:
    """Return a format of text as chat completions have it."""
    if not isinstance(form, dict) or form.get("type") == "text":
        return None
    if form.get("type") != "json_schema":
        return form
    schema = {name: value for name, value in form.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}


# Writing.


def _written(message: Message, original: Item | None) -> list[Item]:
    """Return a message as items, written over the one in whose place it stands."""
    slots = [] if original is None else item_slots(original, "item", EVERY_KIND)[1]
    pairs = paired(message.content, slots)
    if original is not None and len(pairs) == 1:
        part, slot = pairs[0]
        if slot is not None and slot.part == part:
            return [original]
        over = _over(original, part)
        if over is not None:
            return [over]
    items: list[Item] = []
    content: list[Any] = []
    for part, slot in pairs:
        if isinstance(part, ToolCall | ToolResult) or (slot is not None and slot.field == "item"):
            items += _fresh_item(part)
        elif not isinstance(part, Reasoning):
            content.append(_written_part(part, slot, message))
    if content:
        held: Any = content
        single = content[0]
        if len(content) == 1 and set(single) == {"type", "text"}:
            held = single["text"]
        base: Item = {"role": message.role}
        if original is not None and original.get("type", "message") == "message":
            base = original
            held = content if isinstance(original["content"], list | tuple) else held
        items.insert(0, {**base, "content": held})
    return items


def _over(original: Item, part: Part) -> Item | None:
    """Return an item of one part with another in its place; `None` where that can't be."""
    kind = original.get("type")
    if kind in ("instructions", "input") and isinstance(part, Text):
        return {**original, "content": part.text}
    if kind == "prompt" and isinstance(part, Text):
        value = original["value"]
        written = part.text if isinstance(value, str) else {**value, "text": part.text}
        return {**original, "value": written}
    if kind == "function_call" and isinstance(part, ToolCall):
        return {**original, "name": part.name, "arguments": arguments_of(part)}
    if kind == "custom_tool_call" and isinstance(part, ToolCall):
        return {**original, "name": part.name, "input": str(part.arguments.get("input", ""))}
    if isinstance(part, ToolResult):
        return {**original, "output": part.content}
    if isinstance(part, Json) and isinstance(part.value, dict):
        return part.value
    return None


def _fresh_item(part: Part) -> list[Item]:
    if isinstance(part, ToolCall):
        call = {"type": "function_call", "call_id": part.id, "name": part.name}
        return [{**call, "arguments": arguments_of(part)}]
    if isinstance(part, ToolResult):
        return [{"type": "function_call_output", "call_id": part.id, "output": part.content}]
    return [part.value] if isinstance(part, Json) and isinstance(part.value, dict) else []


def _written_part(part: Part, slot: Slot | None, message: Message) -> Any:
    if slot is not None and slot.part == part and isinstance(slot.json, Mapping):
        return slot.json
    old = slot.json if slot is not None and isinstance(slot.json, Mapping) else {}
    if isinstance(part, Text):
        if "refusal" in old:
            return {**old, "refusal": part.text}
        kind = "output_text" if message.role == "assistant" else "input_text"
        return {"type": kind, **old, "text": part.text}
    if isinstance(part, Image):
        return {"type": "input_image", **old, "image_url": part.reference}
    if isinstance(part, Audio):
        data = part.reference.partition(",")[2] or part.reference
        held = {"data": data, "format": part.media_type.partition("/")[2]}
        return {"type": "input_audio", **old, "input_audio": held}
    if isinstance(part, Json):
        return part.value
    raise InputError(
        f"a message of the role {message.role!r} has no place for {type(part).__name__} in the "
        "responses format. Move the part to a message of a role that can hold it."
    )


def _as_message(item: Item) -> Item:
    if item.get("type") == "input":
        return {"role": "user", "content": item["content"]}
    return item


# Output.


def _given(output: Sequence[Any]) -> list[Slot]:
    """Return what a response's output says, part by part; `field` is the number of the item."""
    slots: list[Slot] = []
    for place, item in enumerate(output):
        for slot in item_slots(item, f"output[{place}]", given=True)[1]:
            slots.append(Slot(str(place), slot.part, slot.json))
    return slots


def released_output(output: Sequence[Any], candidate: Candidate) -> list[Item]:
    """Return output items that say what a candidate says, written over the provider's.

    Items and parts that the candidate has not are left out. Annotations and log-probabilities
    belong to the text that they were given with.
    """
    kept: dict[int, list[tuple[Part, Slot]]] = {}
    fresh: list[Part] = []
    for part, slot in paired(candidate.content, _given(output)):
        if slot is None:
            fresh.append(part)
        else:
            kept.setdefault(int(slot.field), []).append((part, slot))
    items: list[Item] = []
    for place, item in enumerate(output):
        pairs = kept.get(place, [])
        if item.get("type") == "message":
            content = [_released_part(part, slot.json) for part, slot in pairs]
            items += [{**item, "content": content}] if content else []
        elif pairs:
            part, slot = pairs[0]
            over = item if slot.part == part else _over(item, part)
            items += [over] if over is not None else []
    said = "".join(part.text for part in fresh if isinstance(part, Text))
    if said:
        text = {"type": "output_text", "text": said, "annotations": []}
        message = {"id": "msg_isonomy", "type": "message", "role": "assistant"}
        items.append({**message, "status": "completed", "content": [text]})
    for number, part in enumerate(fresh):
        if isinstance(part, ToolCall):
            own = {"id": f"fc_isonomy_{number}", "status": "completed"}
            items.append({**_fresh_item(part)[0], **own})
    return items


def _released_part(part: Part, json: Mapping[str, Any]) -> Any:
    if not isinstance(part, Text):
        return part.value if isinstance(part, Json) else json
    if json.get("type") == "refusal":
        return {"type": "refusal", "refusal": part.text}
    if json.get("text") == part.text:
        return json
    cleared: dict[str, Any] = {"type": "output_text", "text": part.text, "annotations": []}
    return {**cleared, "logprobs": []} if "logprobs" in json else cleared
