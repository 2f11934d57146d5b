"""What checks are asked about, and what their answers may put in its place.

Functions named `about_...` turn a stage's content into questions; `as_...` and `new_...` read what
a check returned, and raise `TypeError` with a sentence where it is not what the stage can take.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .canonical import require_declared, require_finite
from .checks import Check
from .errors import InputError
from .vocabulary import (
    Candidate,
    Critique,
    Document,
    Message,
    Part,
    Ranking,
    Replace,
    Text,
    ToolCall,
    ToolResult,
)


class Question(msgspec.Struct):
    """One thing to ask a check.

    About which target, with which arguments, and what content that is.
    """

    target: str
    arguments: dict[str, Any]
    seen: Any


def about_messages(check: Check, content: tuple[Message, ...]) -> list[Question]:
    """Ask a plugin about all messages, a callable about each text that is not the system's own."""
    if not check.is_callable:
        return [Question("messages", {"messages": content}, content)]
    asked = []
    for index, message in enumerate(content):
        if message.role != "system" and message.text:
            asked.append(Question(f"message/{index}", {"text": message.text}, message))
        asked += [
            Question(f"message/{index}/{place}", {"text": part.content}, part)
            for place, part in enumerate(message.content)
            if isinstance(part, ToolResult) and part.content
        ]
    return asked


def new_messages(
    content: tuple[Message, ...], target: str, verdict: Replace
) -> tuple[Message, ...]:
    """Return the messages with what a check replaced."""
    if target == "messages":
        return as_messages(verdict.content, content)
    _, index, *place = target.split("/")
    message, text = content[int(index)], as_text(verdict.content)
    if place:
        parts = list(message.content)
        parts[int(place[0])] = msgspec.structs.replace(parts[int(place[0])], content=text)
        message = Message(message.role, tuple(parts))
    else:
        message = message.with_text(text)
    return (*content[: int(index)], message, *content[int(index) + 1 :])


def judged_part(content: Any, target: str) -> Any:
    """Return what a target names within a content."""
    if not target.startswith("message/"):
        return content
    _, index, *place = target.split("/")
    message = content[int(index)]
    return message.content[int(place[0])] if place else message


def about_answer(check: Check, content: Candidate) -> list[Question]:
    """Ask a plugin about the candidate, a callable about its text."""
    arguments = {"text": content.text} if check.is_callable else {"candidate": content}
    return [Question("candidate/0", arguments, content)]


def new_answer(content: Candidate, target: str, verdict: Replace) -> Candidate:
    """Return the candidate with what a check replaced."""
    return content.with_content(as_parts(verdict.content, content.content))


def about_documents(check: Check, content: tuple[Document, ...]) -> list[Question]:
    """Ask about all documents at once."""
    return [Question("documents", {"documents": content}, content)]


def new_documents(content: Any, target: str, verdict: Replace) -> tuple[Document, ...]:
    """Return the documents that a check left."""
    kept = tuple(verdict.content)
    if all(isinstance(item, Document) for item in kept):
        return kept  # type: ignore[return-value]
    raise TypeError("Replace at retrieved must hold Documents, and nothing else")


def with_documents(
    messages: tuple[Message, ...], documents: tuple[Document, ...]
) -> tuple[Message, ...]:
    """Return the messages with the documents put before what the user asked last.

    Not as a system message: documents are a stranger's words, and every check sees them as input.
    """
    if not documents:
        return messages
    listed = "\n\n".join(f"[{document.id}]\n{document.text}" for document in documents)
    block = Text(f"Documents:\n\n{listed}\n\n")
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            asked = Message("user", (block, *messages[index].content))
            return (*messages[:index], asked, *messages[index + 1 :])
    return (*messages, Message("user", (block,)))


def about_results(check: Check, content: tuple[Message, ...]) -> list[Question]:
    """Ask about each tool result, with the call that it answers."""
    calls = {
        part.id: part
        for message in content
        for part in message.content
        if isinstance(part, ToolCall)
    }
    return [
        Question(
            f"tool_result/{part.id}",
            {"tool_call": calls.get(part.id, ToolCall(part.id, "", {})), "result": part},
            part,
        )
        for message in content
        for part in message.content
        if isinstance(part, ToolResult)
    ]


def about_calls(check: Check, content: Candidate) -> list[Question]:
    """Ask about each tool call."""
    return [
        Question(f"tool_call/{part.id}", {"tool_call": part}, part)
        for part in content.content
        if isinstance(part, ToolCall)
    ]


def no_replacement(content: Any, target: str, verdict: Replace) -> Any:
    """Refuse: here nothing can be replaced."""
    raise TypeError("Replace is not possible for tool calls and results; Block or Flag is")


def as_text(content: Any) -> str:
    """Return the text that a callable's `Replace` holds."""
    if isinstance(content, str):
        return content
    raise TypeError("Replace from a callable check must hold text (a str)")


def as_messages(content: Any, old: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages that a `Replace` makes of the old ones."""
    if isinstance(content, str):
        # Text alone replaces what was asked last.
        for index in range(len(old) - 1, -1, -1):
            if old[index].role == "user":
                return (*old[:index], old[index].with_text(content), *old[index + 1 :])
        raise TypeError("Replace with text at pre_filter needs a user message to replace")
    if content and all(isinstance(item, Message) for item in content):
        return tuple(content)
    raise TypeError(
        "Replace at pre_filter must hold text or at least one Message, and nothing else"
    )


def as_parts(content: Any, old: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the parts that a `Replace` makes of the old ones."""
    if isinstance(content, str):
        return (Text(content), *(part for part in old if not isinstance(part, Text)))
    if all(isinstance(item, Part) for item in content):
        return tuple(content)
    raise TypeError("Replace at post_validate must hold text or parts, not messages")


def as_critiques(value: Any) -> tuple[Critique, ...]:
    """Return what a critique hook said."""
    critiques = tuple(value)
    for critique in critiques:
        if not isinstance(critique, Critique):
            raise TypeError(f"critique must return Critiques, not {type(critique).__name__}")
        require_finite(critique.score, "a critique's score")
    return tuple(require_declared(critique, Critique) for critique in critiques)


def as_candidate(value: Any) -> Candidate:
    """Return a revised candidate."""
    if not isinstance(value, Candidate):
        raise TypeError(f"revise must return a Candidate or None, not {type(value).__name__}")
    return require_declared(value, Candidate)


def as_ranking(value: Any) -> Ranking:
    """Return an order of the one candidate there is."""
    if not isinstance(value, Ranking) or sorted(value.order) != [0]:
        raise TypeError("rank must return a Ranking that orders each candidate exactly once")
    for score in value.scores:
        try:
            require_finite(score, "a ranking's score")
        except InputError as error:
            raise TypeError(str(error)) from None
    return require_declared(value, Ranking)
