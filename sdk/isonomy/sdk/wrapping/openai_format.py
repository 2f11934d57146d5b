"""The chat-completions format and our vocabulary, in both directions: messages and requests.

The format is that of https://platform.openai.com/docs/api-reference/chat, as plain JSON data.
openai_answers.py has the other half, answers and streams. Pure functions.

Nothing that a check could be asked about is passed over: a role, a content part or a tool call of a
kind that is not known here is refused by name, unless the caller says that parts of this kind are
to be carried (as `Json`). Fields beside the content (``name``, cache marks, a provider's own) are
not content: `rewritten` leaves them as they were, and whatever did not change as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..canonical import canonical
from ..errors import InputError
from ..generation import Sampling
from ..vocabulary import (
    Audio,
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

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The format's roles in our words. ``developer`` is what reasoning models call ``system``."""
REASONING = ("reasoning_content", "reasoning")
"""Fields in which servers show a model's reasoning (the format itself has none)."""
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "stop": "stop",
    "seed": "seed",
}
"""Parameters of a request that `Sampling` has a field for; where two have the same, the last."""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request of the format in our words.

    `extra` holds what has no field here, as it stands (``user`` and ``stream_options`` too).
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    n: int = 1
    stream: bool = False

    @property
    def user(self) -> str | None:
        """Who the application says is asking: ``safety_identifier``, or ``user`` before it."""
        for name in ("safety_identifier", "user"):
            if isinstance(said := self.extra.get(name), str) and said:
                return said
        return None

    @property
    def include_usage(self) -> bool:
        """Whether a stream is to end with a chunk that holds the usage."""
        options = self.extra.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


class Slot(msgspec.Struct, frozen=True):
    """A part of a message, and where and how it stands in the format's message."""

    field: str
    part: Part
    json: Any


def request_of(
    body: Mapping[str, Any], *, carry: Collection[str] = (), strict: bool = True
) -> ChatRequest:
    """Read the body of a request.

    Args:
        body: plain JSON data.
        carry: types of content parts that are to be carried as `Json` though they are not known;
            ``"prediction"`` lets that parameter pass.
        strict: refuse a sampling setting, ``n`` or ``stream`` of the wrong type; else it stays in
            `extra` as it stands, for somebody else to refuse.

    Raises:
        InputError: naming the key that can't be used.
    """
    rest = dict(body)
    model = rest.pop("model", None)
    if not isinstance(model, str) or not model:
        raise InputError("model must be the name of a model.")
    messages = messages_of(rest.pop("messages", None), carry=carry)
    if rest.get("prediction") is not None and "prediction" not in carry:
        raise InputError(
            "prediction holds text that no check would be asked about. Leave it out. A client that "
            "is wrapped here, with guard.wrap(client, carry=('prediction',)), sends it as it is."
        )
    tools = rest.pop("tools", None) or ()
    if isinstance(tools, str | Mapping) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError("tools must be a list of dictionaries.")
    form = rest.pop("response_format", None)
    if form is not None and not isinstance(form, dict):
        raise InputError(f"response_format must be a dictionary, not {type(form).__name__}.")
    n = _taken(rest, "n", int, strict, least=1)
    stream = _taken(rest, "stream", bool, strict)
    return ChatRequest(
        model=model,
        messages=messages,
        sampling=_sampling_of(rest, strict),
        tools=tuple(dict(tool) for tool in tools),
        response_format=form,
        extra=rest,
        n=n or 1,
        stream=bool(stream),
    )


def body_of(request: ChatRequest) -> dict[str, Any]:
    """Return the body of a request; the inverse of `request_of`.

    Raises:
        InputError: a message holds a part that the format has no place for.
    """
    sampling = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        if (value := getattr(request.sampling, name)) is not None
    }
    if request.sampling.max_tokens is not None:
        sampling["max_completion_tokens"] = request.sampling.max_tokens
    if request.sampling.stop:
        sampling["stop"] = list(request.sampling.stop)
    return {
        "model": request.model,
        "messages": items_of(request.messages),
        **({"tools": list(request.tools)} if request.tools else {}),
        **({} if request.response_format is None else {"response_format": request.response_format}),
        **sampling,
        **request.extra,
        **({"n": request.n} if request.n != 1 else {}),
        **({"stream": True} if request.stream else {}),
    }


def _sampling_of(rest: dict[str, Any], strict: bool) -> Sampling:
    """Take the sampling settings out of `rest`."""
    found: dict[str, Any] = {}
    for name, field in _SAMPLING.items():
        value = rest.get(name)
        if name not in rest:
            continue
        if value is None:
            del rest[name]
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        try:
            taken = msgspec.convert({field: value}, Sampling)
            if taken.seed is not None and not 0 <= taken.seed < 1 << 64:
                raise msgspec.ValidationError("a seed is from 0 to 2**64 - 1")
            if "" in taken.stop:
                raise msgspec.ValidationError("a stop string must not be empty")
        except msgspec.ValidationError as error:
            if strict:
                raise InputError(f"{name}: {error}.") from None
            continue
        found[field] = getattr(taken, field)
        del rest[name]
    return Sampling(**found)


def _taken(rest: dict[str, Any], name: str, kind: type, strict: bool, least: int = 0) -> Any:
    value: Any = rest.get(name)
    fits = type(value) is kind
    if value is None or (fits and int(value) >= least):
        rest.pop(name, None)
        return value
    if strict:
        wanted = "true or false" if kind is bool else f"an integer, {least} or more"
        raise InputError(f"{name} must be {wanted}, not {value!r:.40}.")
    return None


def messages_of(items: Any, *, carry: Collection[str] = ()) -> tuple[Message, ...]:
    """Read the messages of a request.

    Raises:
        InputError: naming the message, the part and the key that can't be used.
    """
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise InputError(f"messages must be a list of dictionaries, not {type(items).__name__}.")
    return tuple(
        message_of(item, where=f"messages[{index}]", carry=carry)
        for index, item in enumerate(items)
    )


def message_of(item: Any, *, where: str, carry: Collection[str] = ()) -> Message:
    """Read one message; `where` is what errors call it."""
    slots = slots_of(item, where=where, carry=carry)
    return Message(ROLES[item["role"]], tuple(slot.part for slot in slots))


def slots_of(item: Any, *, where: str, carry: Collection[str] = ()) -> list[Slot]:
    """Return what a message says, part by part, and where each stands.

    Raises:
        InputError: naming what can't be used.
    """
    if not isinstance(item, Mapping):
        raise InputError(f"{where} must be a dictionary, not {type(item).__name__}.")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r:.40}.")
    content = item.get("content")
    if ROLES[role] == "tool":
        return [Slot("content", _tool_result(item, role, content, where), content)]
    slots = [
        Slot(name, Reasoning(said), said)
        for name in REASONING
        if isinstance(said := item.get(name), str) and said
        if name == REASONING[0] or said != item.get(REASONING[0])  # what is said twice counts once
    ]
    if isinstance(content, str):
        slots.append(Slot("content", Text(content), content))
    elif isinstance(content, list | tuple):
        slots += [
            Slot("content", _content_part(part, f"{where}.content[{place}]", carry), part)
            for place, part in enumerate(content)
        ]
    elif content is not None:
        raise InputError(
            f"{where}.content must be text or a list of parts, not {type(content).__name__}."
        )
    if role != "assistant":
        return slots
    if isinstance(refusal := item.get("refusal"), str) and refusal:
        slots.append(Slot("refusal", Text(refusal), refusal))
    audio = item.get("audio")
    if isinstance(audio, Mapping):
        slots += _audio_slots(audio)
    calls = item.get("tool_calls") or ()
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise InputError(f"{where}.tool_calls must be a list.")
    slots += [
        Slot("tool_calls", _tool_call(call, f"{where}.tool_calls[{place}]"), call)
        for place, call in enumerate(calls)
    ]
    if isinstance(legacy := item.get("function_call"), Mapping):
        function = {"id": "", "type": "function", "function": legacy}
        part = _tool_call(function, f"{where}.function_call")
        slots.append(Slot("function_call", part, legacy))
    return slots


def _content_part(part: Any, where: str, carry: Collection[str]) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return Text(part["refusal"])
    held = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        url = held.get("url") if isinstance(held, Mapping) else held
        if isinstance(url, str):
            return Image(url, media_type_of(url, "image/*"))
    if kind == "input_audio" and isinstance(held, Mapping) and isinstance(held.get("data"), str):
        form = str(held.get("format", "*"))
        return Audio(f"data:audio/{form};base64,{held['data']}", f"audio/{form}")
    if isinstance(kind, str) and kind in carry:
        return Json(plain(part, where))
    raise unknown_part(where, kind, ("text", "refusal", "image_url", "input_audio"))


def unknown_part(where: str, kind: Any, known: Iterable[str]) -> InputError:
    """Return the error that names a part which no check could be asked about."""
    advice = (
        f"Leave it out. A client that is wrapped here, with guard.wrap(client, carry=({kind!r},)), "
        "passes it on, and checks are shown it as Json."
        if isinstance(kind, str)
        else "Leave it out, or give it one."
    )
    return InputError(
        f"{where} is of the type {kind!r:.40}, which can't be judged: known here and well formed "
        f"are {', '.join(known)}. {advice}"
    )


def plain(value: Any, where: str) -> Any:
    """Return a copy of plain JSON data.

    Raises:
        InputError: it is none.
    """
    try:
        return msgspec.json.decode(canonical(value))
    except (InputError, msgspec.DecodeError) as error:
        raise InputError(f"{where}: {error}") from None


def media_type_of(url: str, otherwise: str) -> str:
    """Return the media type that a ``data:`` URL names."""
    if not url.startswith("data:"):
        return otherwise
    return url[5 : 5 + 100].partition(",")[0].partition(";")[0] or otherwise


def _audio_slots(audio: Mapping[str, Any]) -> list[Slot]:
    """An answer in speech, or a reference to an earlier one: what was said and its sound."""
    slots = []
    if isinstance(said := audio.get("transcript"), str) and said:
        slots.append(Slot("audio", Text(said), audio))
    if isinstance(data := audio.get("data"), str) and data:
        slots.append(Slot("audio", Audio(f"data:audio/*;base64,{data}"), audio))
    elif isinstance(name := audio.get("id"), str):
        slots.append(Slot("audio", Audio(name), audio))
    return slots


def _tool_result(item: Mapping[str, Any], role: str, content: Any, where: str) -> ToolResult:
    answers = item.get("tool_call_id" if role == "tool" else "name")
    if not isinstance(answers, str):
        raise InputError(f"{where}.tool_call_id must name the tool call that it answers.")
    if isinstance(content, list | tuple):
        texts = []
        for place, part in enumerate(content):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else None
                raise unknown_part(f"{where}.content[{place}]", kind, ("text",))
            texts.append(part["text"])
        return ToolResult(answers, "".join(texts))
    if content is not None and not isinstance(content, str):
        raise InputError(f"{where}.content must be text or a list of text parts.")
    return ToolResult(answers, content or "")


def _tool_call(call: Any, where: str) -> ToolCall:
    kind = call.get("type", "function") if isinstance(call, Mapping) else None
    held = call.get(kind) if isinstance(kind, str) else None
    if not isinstance(held, Mapping) or not isinstance(held.get("name"), str):
        raise unknown_part(where, kind, ("function", "custom"))
    name, id = held["name"], call.get("id") or ""
    if kind == "custom":
        return ToolCall(id, name, {"input": str(held.get("input", ""))})
    if kind != "function":
        raise unknown_part(where, kind, ("function", "custom"))
    return tool_call_of(id, name, held.get("arguments"))


def tool_call_of(id: str, name: str, arguments: Any) -> ToolCall:
    """Return a tool call from its arguments as a model wrote them.

    What is no JSON object is kept as it stands in `malformed`. No text at all stands for no
    arguments: some servers write it so.
    """
    if isinstance(arguments, dict):  # some servers parse them
        return ToolCall(id, name, arguments)
    written = "" if arguments is None else str(arguments)
    try:
        return ToolCall(id, name, msgspec.json.decode(written or "{}", type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return ToolCall(id, name, {}, written)


def arguments_of(call: ToolCall) -> str:
    """Return a tool call's arguments as the format has them: text."""
    return call.malformed or msgspec.json.encode(call.arguments).decode()


def items_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in the format; one with several tool results becomes several.

    Raises:
        InputError: a message holds a part that its role has no place for.
    """
    return [item for message in messages for item in item_of(message)]


def item_of(message: Message, original: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return a message in the format.

    Args:
        message: what is to be said.
        original: the format's message that it was made of: what did not change stays as it stands
            there, and so does everything that is no content.

    Raises:
        InputError: the message holds a part that its role has no place for.
    """
    if message.role == "tool":
        results = [part for part in message.content if isinstance(part, ToolResult)]
        if len(results) != len(message.content) or not results:
            raise _no_place(message)
        if original is not None and len(results) == 1:
            name = "tool_call_id" if original["role"] == "tool" else "name"
            return [{**original, name: results[0].id, "content": results[0].content}]
        return [
            {"role": "tool", "tool_call_id": result.id, "content": result.content}
            for result in results
        ]
    slots = [] if original is None else slots_of(original, where="message", carry=EVERY_KIND)
    fields: dict[str, list[Any]] = {}
    for part, slot in paired(message.content, slots):
        field, json = _written(part, slot, message)
        fields.setdefault(field, []).append(json)
    item: dict[str, Any] = {"role": message.role} if original is None else dict(original)
    for name in {slot.field for slot in slots} - set(fields):
        item.pop(name)
    said, again = ((original or {}).get(name) for name in REASONING)
    if said and said == again and fields.get(REASONING[0]) != [said]:
        item.pop(REASONING[1])  # it said once more what is not said now
    content = fields.pop("content", [])
    as_text = not isinstance(item.get("content"), list | tuple)
    if len(content) == 1 and as_text and _is_text(content[0]):
        first = content[0]
        item["content"] = first if isinstance(first, str) else first["text"]
    elif content:
        item["content"] = [
            {"type": "text", "text": json} if isinstance(json, str) else json for json in content
        ]
    elif message.role == "assistant" and fields:
        item["content"] = None
    else:
        item["content"] = ""
    for name, values in fields.items():
        item[name] = values if name == "tool_calls" else values[0]
    return [item]


class _Everything(Collection[str]):
    """Contains every kind of part: what was let in once is let out again."""

    def __contains__(self, kind: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


EVERY_KIND = _Everything()
"""For `carry`, where nothing may be refused: what a provider said, or what was let in before."""


def _is_text(json: Any) -> bool:
    return isinstance(json, str) or json.keys() == {"type", "text"}


def paired(parts: Sequence[Part], slots: Sequence[Slot]) -> list[tuple[Part, Slot | None]]:
    """Return each part with the slot that it came from, or that it takes the place of.

    A slot that holds the same comes first; then, in order, one that holds another of the same type.
    """
    left = list(slots)
    pairs: list[tuple[Part, Slot | None]] = [(part, None) for part in parts]
    for same in (True, False):
        for place, (part, slot) in enumerate(pairs):
            if slot is not None:
                continue
            for candidate in left:
                if candidate.part == part if same else type(candidate.part) is type(part):
                    pairs[place] = (part, candidate)
                    left.remove(candidate)
                    break
    return pairs


def _written(part: Part, slot: Slot | None, message: Message) -> tuple[str, Any]:
    """Return where a part goes in the format's message, and what is written there."""
    if slot is not None and slot.part == part:
        return slot.field, slot.json
    old = slot.json if slot is not None and isinstance(slot.json, Mapping) else {}
    field = slot.field if slot is not None else ""
    if isinstance(part, Text):
        if field == "refusal":
            return field, part.text
        if isinstance(old.get("refusal"), str):
            return "content", {**old, "refusal": part.text}
        if isinstance(old.get("text"), str):
            return "content", {**old, "text": part.text}
        return "content", part.text
    if isinstance(part, Json):
        return "content", part.value
    if isinstance(part, Reasoning) and message.role == "assistant":
        return field or REASONING[0], part.text
    if isinstance(part, ToolCall) and message.role == "assistant":
        return _written_call(part, field, old)
    if isinstance(part, Image) and message.role == "user":
        held = old.get("image_url")
        image = {**(held if isinstance(held, Mapping) else {}), "url": part.reference}
        return "content", {**old, "type": "image_url", "image_url": image}
    if isinstance(part, Audio) and message.role == "user":
        form = part.media_type.partition("/")[2]
        data = part.reference.partition(",")[2] or part.reference
        audio = {"data": data, "format": form}
        return "content", {**old, "type": "input_audio", "input_audio": audio}
    raise _no_place(message)


def _written_call(call: ToolCall, field: str, old: Mapping[str, Any]) -> tuple[str, Any]:
    if field == "function_call":
        return field, {**old, "name": call.name, "arguments": arguments_of(call)}
    if old.get("type") == "custom" and call.arguments.keys() == {"input"}:
        custom = {**old["custom"], "name": call.name, "input": call.arguments["input"]}
        return "tool_calls", {**old, "id": call.id, "custom": custom}
    function = {"name": call.name, "arguments": arguments_of(call)}
    return "tool_calls", {**old, "id": call.id, "type": "function", "function": function}


def _no_place(message: Message) -> InputError:
    kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in message.content)) or "nothing"
    return InputError(
        f"a message of the role {message.role!r} that holds {kinds} has no place in the "
        "chat-completions format. Move the part to a message of a role that can hold it."
    )
