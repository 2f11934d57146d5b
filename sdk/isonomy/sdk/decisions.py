"""What a person decided about a call that waits, and what that makes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .contents import as_documents, as_messages, as_parts, as_result
from .records import Resumption
from .vocabulary import Candidate, Document, Message, Stage, ToolResult


class Stood(NamedTuple):
    """What a call had come to when it stopped."""

    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()
    candidate: Candidate | None = None

    def at(self, stage: Stage) -> Any:
        """Return what a stage judges of it."""
        if stage == "retrieved":
            return self.documents
        if stage in ("tool_result", "pre_filter"):
            return self.messages
        return self.candidate

    def target(self, stage: Stage) -> str:
        """Return its name in events."""
        if stage == "retrieved":
            return "documents"
        return f"candidate/{self.candidate.index}" if self.candidate is not None else "messages"


def edited(resumption: Resumption, stood: Stood) -> Stood:
    """Return what a person made of a call that waits: what `Replace` would at its stage.

    Raises:
        TypeError: it does not fit there; the message says what does.
    """
    new, stage = resumption.edited, resumption.stage
    if new is None:
        raise TypeError("an edit needs what to put in: edited=...")
    if stage == "retrieved":
        return stood._replace(documents=as_documents(new))
    if stage == "pre_filter":
        return stood._replace(messages=as_messages(new, stood.messages))
    if stage == "tool_result":
        return stood._replace(messages=_with_results(stood.messages, new))
    assert stood.candidate is not None
    candidate = stood.candidate
    return stood._replace(candidate=candidate.with_content(as_parts(new, candidate.content)))


def _with_results(messages: tuple[Message, ...], new: Any) -> tuple[Message, ...]:
    """Return messages with other tool results: text for the only one, results by their ids."""
    if not isinstance(new, str) and all(isinstance(item, Message) for item in new):
        return as_messages(new, messages)
    found = [part for message in messages for part in message.content]
    ids = [part.id for part in found if isinstance(part, ToolResult)]
    if isinstance(new, str):
        if len(set(ids)) != 1:
            raise TypeError("there are several tool results: edit them by ToolResults, or Messages")
        new = (ToolResult(ids[0], new),)
    if not all(isinstance(item, ToolResult) and item.id in ids for item in new):
        raise TypeError("an edit at tool_result must hold text, its ToolResults, or all Messages")
    by_id = {item.id: item for item in new}
    return tuple(
        Message(
            message.role,
            tuple(
                as_result((by_id[part.id],), part)
                if isinstance(part, ToolResult) and part.id in by_id
                else part
                for part in message.content
            ),
        )
        for message in messages
    )
