"""The messages format of Anthropic's API, to and from our vocabulary. Pure functions on plain data.

The format is that of https://docs.anthropic.com/en/api/messages. Invariants:

- What the model is shown as text is judged as text: titles and texts of documents and of search
  results too. A block of a kind that is not known here is refused by name, never passed by.
- A request is put back together from what was sent: a block that no check changed is the caller's
  own, with its ``cache_control`` and whatever other fields it has.
- A block of an answer is one part, so that parts and blocks correspond by their place.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from typing import Any, NamedTuple

from ..errors import InputError
from ..generation import Sampling, Usage
from ..vocabulary import Image, Json, Message, Part, Reasoning, Text, ToolCall, ToolResult
from .rewriting import rewritten

Block = dict[str, Any]
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_REDACTED = "redacted_thinking:"
"""Begins what is opaque of thinking that the provider shows in encrypted form only."""
_CARRIED = frozenset(("server_tool_use", "container_upload", "tool_reference", "browser_state"))
_NOT_EXTRA = frozenset(("model", "messages", "system", "tools", "stream"))
_KNOWN_AGAIN = 8
"""How many characters of a text are enough to find it in another."""
_SECRET = "authorization_token"
"""The one field of a request that is a secret (of ``mcp_servers``)."""


class Settings(NamedTuple):
    """What a request asks for besides its messages."""

    sampling: Sampling
    tools: tuple[Block, ...]
    response_format: Block | None
    extra: dict[str, Any]


def settings_of(body: Block) -> Settings:
    """Return what a request asks for besides its messages, in our words.

    What has no word of ours, or a value that we could not use, stays in `extra` as it is.
    """
    extra = {name: value for name, value in body.items() if name not in _NOT_EXTRA}
    taken: dict[str, Any] = {}
    for name, kinds in (
        ("temperature", (int, float)),
        ("top_p", (int, float)),
        ("top_k", (int,)),
        ("max_tokens", (int,)),
    ):
        value = extra.get(name)
        if isinstance(value, kinds) and not isinstance(value, bool):
            taken[name] = extra.pop(name)
    stop = extra.get("stop_sequences")
    if isinstance(stop, list) and all(isinstance(text, str) and text for text in stop):
        taken["stop"] = tuple(extra.pop("stop_sequences"))
    config = extra.get("output_config")
    response_format = None
    if isinstance(config, dict) and isinstance(config.get("format"), dict):
        asked = config["format"]
        if asked.get("type") == "json_schema":
            schema = {"name": "answer", "schema": asked.get("schema")}
            response_format = {"type": "json_schema", "json_schema": schema}
            extra["output_config"] = {k: v for k, v in config.items() if k != "format"}
            if not extra["output_config"]:
                del extra["output_config"]
    tools = body.get("tools")
    return Settings(
        sampling=Sampling(**taken),
        tools=tuple(_tool_of(tool) for tool in tools) if isinstance(tools, list) else (),
        response_format=response_format,
        extra=_masked(extra),
    )


def _tool_of(tool: Block) -> Block:
    """Return a tool in the chat-completions format; a tool of the provider's own as it is."""
    if not isinstance(tool, dict) or "input_schema" not in tool:
        return tool
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _masked(value: Any) -> Any:
    """Return plain data without secrets."""
    if isinstance(value, dict):
        return {
            key: "[secret]" if key == _SECRET and held else _masked(held)
            for key, held in value.items()
        }
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return value


class _Piece(NamedTuple):
    """A part, and where in the message's content it stands: the block, and the path within it."""

    part: Part
    block: int
    path: tuple[str | int, ...] = ()


def messages_of(body: Block, *, carry: Collection[str] = ()) -> tuple[Message, ...]:
    """Return a request's messages, the system's first.

    Args:
        body: the request, as plain data.
        carry: types of further blocks that are passed on as `Json`.

    Raises:
        InputError: a message or block is malformed or of a kind that can't be judged; it says
            where.
    """
    result = []
    if body.get("system"):
        result.append(Message("system", _parts(body["system"], "system", carry)))
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InputError("messages must be a list of messages.")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise InputError(f"{where} must be a dictionary with the role user or assistant.")
        result.append(Message(role, _parts(message.get("content"), where, carry)))
    return tuple(result)


def _parts(content: Any, where: str, carry: Collection[str]) -> tuple[Part, ...]:
    return tuple(piece.part for piece in _pieces(content, where, carry))


def _pieces(content: Any, where: str, carry: Collection[str]) -> list[_Piece]:
    if isinstance(content, str):
        return [_Piece(Text(content), 0)]
    if not isinstance(content, list):
        raise InputError(f"{where}.content must be text or a list of blocks.")
    found = []
    for index, block in enumerate(content):
        at = f"{where}.content[{index}]"
        found += [_Piece(part, index, path) for part, path in _parts_of_block(block, at, carry)]
    return found


_Found = list[tuple[Part, tuple[str | int, ...]]]


def _parts_of_block(block: Any, where: str, carry: Collection[str] = ()) -> _Found:
    """Return a block's parts, each with its path within the block."""
    kind = block.get("type") if isinstance(block, dict) else None
    try:
        if kind == "text":
            return [(_text(block["text"]), ("text",))]
        if kind == "thinking":
            return [(Reasoning(block["thinking"], block.get("signature") or ""), ("thinking",))]
        if kind == "redacted_thinking":
            return [(Reasoning("", _REDACTED + block["data"]), ())]
        if kind == "tool_use":
            return [(_tool_call(block), ("input",))]
        if kind == "tool_result":
            return _of_tool_result(block, where)
        if kind == "image":
            return [(Image(*_reference(block["source"], "image/*", where)), ())]
        if kind == "document":
            return _of_document(block, where)
        if kind == "search_result":
            titles: _Found = [(_text(block[name]), (name,)) for name in ("title", "source")]
            return titles + _inner(block["content"], ("content",), where)
        if kind in _CARRIED or str(kind).endswith("_tool_result") or kind in carry:
            return [(Json(block), ())]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is no valid {kind} block: {error!r}.") from None
    raise InputError(
        f"{where} is a block of the type {kind!r}, which can't be judged. Send text, thinking, "
        "images, documents, search results, tool uses and tool results, or wrap the client with "
        f"carry=({kind!r},) to pass such blocks on as they are."
    )


def _text(value: Any) -> Text:
    if not isinstance(value, str):
        raise TypeError(f"text must be a string, not {type(value).__name__}")
    return Text(value)


def _tool_call(block: Block) -> ToolCall:
    arguments = block["input"]
    if isinstance(arguments, dict):
        return ToolCall(block["id"], block["name"], arguments)
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(block["id"], block["name"], {}, written)


def _of_tool_result(block: Block, where: str) -> _Found:
    content = block.get("content")
    if content is None or isinstance(content, str):
        return [(ToolResult(block["tool_use_id"], content or ""), ("content",))]
    texts: _Found = []
    others: _Found = []
    for part, path in _inner(content, ("content",), where):
        (texts if isinstance(part, Text) else others).append((part, path))
    said = "".join(part.text for part, _ in texts if isinstance(part, Text))
    return [(ToolResult(block["tool_use_id"], said), ("content",)), *others]


def _of_document(block: Block, where: str) -> _Found:
    named = [name for name in ("title", "context") if block.get(name)]
    found: _Found = [(_text(block[name]), (name,)) for name in named]
    source = block["source"]
    if source["type"] == "text":
        return [*found, (_text(source["data"]), ("source", "data"))]
    if source["type"] == "content":
        if isinstance(source["content"], str):
            return [*found, (Text(source["content"]), ("source", "content"))]
        return found + _inner(source["content"], ("source", "content"), where)
    return [*found, (Image(*_reference(source, "application/pdf", where)), ())]


def _inner(blocks: Any, path: tuple[str | int, ...], where: str) -> _Found:
    """Return the parts of blocks within a block."""
    if isinstance(blocks, str):
        return [(Text(blocks), path)]
    found: _Found = []
    for index, block in enumerate(blocks):
        at = (*path, index)
        found += [(part, (*at, *rest)) for part, rest in _parts_of_block(block, where)]
    return found


def _reference(source: Block, media_type: str, where: str) -> tuple[str, str]:
    """Return what an image's or a document's source refers to, and its media type."""
    kind = source["type"]
    if kind == "base64":
        media = source["media_type"]
        return f"data:{media};base64,{source['data']}", media
    if kind == "url":
        return source["url"], media_type
    if kind == "file":
        return f"file:{source['file_id']}", media_type
    raise InputError(
        f"{where} has a source of the type {kind!r}, which can't be judged. Use base64, url, file, "
        "text or content."
    )


def rendered(body: Block, asked: tuple[Message, ...], admitted: tuple[Message, ...]) -> Block:
    """Return the request that sends the messages `admitted` in place of `asked`.

    Args:
        body: the request as its caller made it.
        asked: its messages, from `messages_of`.
        admitted: the messages as checks left them, and rounds of a retry after them.
    """
    if admitted == asked:
        return body
    items = list(body["messages"])
    if len(asked) > len(items):
        items.insert(0, {"role": "system", "content": body["system"]})
    said = rewritten(items, asked, admitted, _written_message)
    leading = next((i for i, item in enumerate(said) if item["role"] != "system"), len(said))
    system = [item["content"] for item in said[:leading]]
    messages = said[leading:]
    sent = {**body, "messages": messages}
    if system:
        sent["system"] = (
            system[0] if len(system) == 1 else [block for c in system for block in _listed(c)]
        )
    else:
        sent.pop("system", None)
    return sent


def _written_message(message: Message, original: Block | None) -> list[Block]:
    """Return a message in the format, over the one in whose place it stands; none for nothing."""
    content = _content(None if original is None else original["content"], message)
    if not content:  # the provider refuses empty messages
        return []
    role = "user" if message.role == "tool" else message.role
    return [{**(original or {}), "role": role, "content": content}]


def _listed(content: Any) -> list[Block]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _content(held: Any, message: Message) -> Any:
    """Return the content that says what a message says, made of the blocks that it held."""
    if held is None:
        only = len(message.content) == 1 and isinstance(message.content[0], Text)
        return message.text if only else _fresh(message, [], [])
    pieces = _pieces(held, "message", _types(held))
    old = [piece.part for piece in pieces]
    new = list(message.content)
    if new == old:
        return held
    if [type(part) for part in new] != [type(part) for part in old]:
        spread = _spread(pieces, new)
        if spread is None:
            return _fresh(message, pieces, _listed(held))
        new = spread
    if isinstance(held, str):
        return message.text
    return _patched(held, pieces, new)


def _spread(pieces: list[_Piece], new: list[Part]) -> list[Part] | None:
    """Return parts in the original's places, where one text stands for all texts of a message.

    `None` where that can't be told.
    """
    others = [type(piece.part) for piece in pieces if not isinstance(piece.part, Text)]
    texts = [piece.part.text for piece in pieces if isinstance(piece.part, Text)]
    if not new or not isinstance(new[0], Text) or not texts:
        return None
    if [type(part) for part in new[1:]] != others:
        return None
    spread, rest = iter(_divided(texts, new[0].text)), iter(new[1:])
    return [Text(next(spread)) if isinstance(piece.part, Text) else next(rest) for piece in pieces]


def _divided(texts: list[str], whole: str) -> list[str]:
    """Divide a text among the texts that it was made of; joined they give it again.

    What stands unchanged at the beginning or at the end is its own; between them, what is long
    enough to be known again; what is left between two such texts is the first changed one's.
    """
    start, end = 0, len(texts)
    while start < end and whole.startswith(texts[start]):
        whole = whole[len(texts[start]) :]
        start += 1
    after: list[str] = []
    while end > start and whole.endswith(texts[end - 1]):
        end -= 1
        whole = whole[: len(whole) - len(texts[end])]
        after.insert(0, texts[end])
    middle = [""] * (end - start)
    changed = 0  # which of them takes what comes next
    for index, text in enumerate(texts[start:end]):
        place = whole.find(text) if index and len(text) >= _KNOWN_AGAIN else -1
        if place >= 0:
            middle[changed] += whole[:place]
            middle[index], whole = text, whole[place + len(text) :]
            changed = min(index + 1, len(middle) - 1)
    before = texts[:start]
    if middle:
        middle[changed] += whole
    elif before:
        before[-1] += whole
    else:
        after[0] = whole + after[0]
    return [*before, *middle, *after]


def _types(content: Any) -> set[str]:
    """Return the types of blocks that were read before, so that all of them may be read again."""
    return set() if isinstance(content, str) else {block["type"] for block in content}


def _patched(blocks: list[Block], pieces: list[_Piece], new: list[Part]) -> list[Block]:
    """Return the blocks with what was changed written where it stood.

    Blocks go of which no text is left; the provider refuses empty ones.
    """
    result: list[Block | None] = list(blocks)
    left = {
        piece.block
        for piece, part in zip(pieces, new, strict=True)
        if part == piece.part or not isinstance(part, Text) or part.text
    }
    # A tool result's own pieces come after it, and are written before its shape changes.
    for piece, part in reversed(list(zip(pieces, new, strict=True))):
        if part == piece.part:
            continue
        block = result[piece.block]
        if block is None:
            continue
        if block is blocks[piece.block]:
            block = copy.deepcopy(block)
        if isinstance(part, Text):
            kept = piece.block in left
            result[piece.block] = _written(block, piece.path, part.text) if kept else None
        elif isinstance(part, ToolResult):
            block["tool_use_id"] = part.id
            result[piece.block] = _with_result(block, part.content)
        elif isinstance(part, ToolCall):
            result[piece.block] = {**block, **_block(part)}
        elif isinstance(part, Reasoning) and isinstance(piece.part, Reasoning):
            if part.text != piece.part.text:  # its signature does not fit other words
                result[piece.block] = None
        elif piece.path:
            result[piece.block] = _written(block, piece.path, _block(part))
        else:
            result[piece.block] = _block(part)
    return [block for block in result if block is not None]


def _written(block: Block, path: tuple[str | int, ...], value: Any) -> Block:
    place: Any = block
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return block


def _with_result(block: Block, text: str) -> Block:
    """Put one text where the texts of a tool result were; what holds no text stays."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        block["content"] = text
        return block
    kept = [
        inner
        for inner in content
        if not any(isinstance(part, Text) for part, _ in _parts_of_block(inner, "content"))
    ]
    block["content"] = [{"type": "text", "text": text}, *kept] if kept else text
    return block


def _fresh(message: Message, pieces: list[_Piece], blocks: list[Block]) -> list[Block]:
    """Return new content, with the original's own blocks for parts that are a whole block of it."""
    sizes = [piece.block for piece in pieces]
    whole = [piece for piece in pieces if sizes.count(piece.block) == 1]
    made: list[Block] = []
    for part in message.content:
        own = next((piece for piece in whole if piece.part == part), None)
        if own is not None:
            whole.remove(own)
            made.append(blocks[own.block])
        elif not (isinstance(part, Text) and not part.text):
            made.append(_block(part))
    # The provider wants results of tools before anything else that is said with them.
    return sorted(made, key=lambda block: block.get("type") != "tool_result")


def _block(part: Part) -> Block:
    """Return a part as a block.

    Raises:
        InputError: the format has no block for it.
    """
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Reasoning):
        if part.opaque.startswith(_REDACTED):
            return {"type": "redacted_thinking", "data": part.opaque.removeprefix(_REDACTED)}
        return {"type": "thinking", "thinking": part.text, "signature": part.opaque}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
    if isinstance(part, ToolResult):
        return {"type": "tool_result", "tool_use_id": part.id, "content": part.content}
    if isinstance(part, Json):
        if isinstance(part.value, dict) and "type" in part.value:
            return part.value
        return {"type": "text", "text": json.dumps(part.value, ensure_ascii=False)}
    if isinstance(part, Image):
        kind = "document" if part.media_type == "application/pdf" else "image"
        return {"type": kind, "source": _source(part)}
    raise InputError(
        f"the messages format has no block for {type(part).__name__}. Send text in its place."
    )


def _source(image: Image) -> Block:
    reference = image.reference
    if reference.startswith("file:"):
        return {"type": "file", "file_id": reference.removeprefix("file:")}
    if reference.startswith("data:"):
        head, _, data = reference.partition(",")
        media = head.removeprefix("data:").removesuffix(";base64")
        return {"type": "base64", "media_type": media, "data": data}
    return {"type": "url", "url": reference}


def answer_parts(blocks: list[Block]) -> tuple[Part, ...]:
    """Return the parts of an answer, one for each block.

    A block of a kind that is not known is carried as it is, as `Json`, for checks that look at it.
    """
    return tuple(_answer_part(block) for block in blocks)


def _answer_part(block: Block) -> Part:
    kind = block.get("type")
    if kind in ("text", "thinking", "redacted_thinking", "tool_use"):
        return _parts_of_block(block, "the answer")[0][0]
    return Json(block)


def answer_block(part: Part) -> Block:
    """Return a part of an answer as a block of one."""
    return {**_block(part), "citations": None} if isinstance(part, Text) else _block(part)


def finish_reason_of(stop_reason: str | None) -> str:
    """Return our word for a stop reason; a reason that we have no word for as it is."""
    return _FINISH.get(stop_reason or "unknown", stop_reason or "unknown")


def usage_of(usage: Block | None) -> Usage:
    """Return token counts; input tokens are all that were read, cached ones too."""
    if not usage:
        return Usage()
    counted = [
        usage.get(name)
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    ]
    known = [count for count in counted if isinstance(count, int)]
    written = usage.get("output_tokens")
    return Usage(sum(known) if known else None, written if isinstance(written, int) else None)
