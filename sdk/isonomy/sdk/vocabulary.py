"""The words of Isonomy: messages, candidates and what plugins say about them.

Every type is a frozen `msgspec.Struct`, so a value can be shared between threads, hashed, written
to the log and read back without copies. Unions are tagged by the field ``type``; adding a member is
a schema change, renaming one is not allowed. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
VerdictName = Literal["allow", "flag", "replace", "retry", "ask_human", "block"]
Stage = Literal[
    "pre_filter",
    "retrieved",
    "critique",
    "revise",
    "rank",
    "post_validate",
    "tool_call",
    "tool_result",
]

SEVERITY: dict[VerdictName, int] = {
    "allow": 0,
    "flag": 1,
    "replace": 2,
    "retry": 3,
    "ask_human": 4,
    "block": 5,
}
"""Precedence of verdicts: when several apply, the highest number decides; all are recorded."""


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A run of text inside a message."""

    text: str


class Json(msgspec.Struct, frozen=True, tag="json"):
    """Structured data inside a message: `value` is plain JSON data."""

    value: Any


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """What a model said to itself before it answered, where its provider shows it.

    It is judged like text, is no part of an answer's `text`, and is dropped where the text was
    replaced. `opaque` is what the provider wants back with it (a signature, encrypted content).
    """

    text: str
    opaque: str = ""


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call", omit_defaults=True):
    """A request of the model to run a tool; `arguments` are parsed JSON.

    Where the model's arguments are no JSON object, `arguments` is empty and `malformed` holds what
    it wrote, as it stands.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    malformed: str = ""


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    """What a tool answered; `id` names the `ToolCall` it answers."""

    id: str
    content: str


class Image(msgspec.Struct, frozen=True, tag="image"):
    """A reference to an image: carried and digested, never fetched."""

    reference: str
    media_type: str = "image/*"


class Audio(msgspec.Struct, frozen=True, tag="audio"):
    """A reference to a recording: carried and digested, never fetched."""

    reference: str
    media_type: str = "audio/*"


Part = Text | Json | Reasoning | ToolCall | ToolResult | Image | Audio


def text_of(parts: Iterable[Part]) -> str:
    """Return the text parts joined, in order; other parts contribute nothing."""
    return "".join(part.text for part in parts if isinstance(part, Text))


class Message(msgspec.Struct, frozen=True, tag="message"):
    """One turn of a conversation: who speaks, and the parts of what is said."""

    role: Role
    content: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """Return a message of one text part."""
        return cls(role, (Text(text),))

    @property
    def text(self) -> str:
        """The text parts joined."""
        return text_of(self.content)

    def with_text(self, text: str) -> Message:
        """Return this message with its text replaced and its other parts kept, text first."""
        others = tuple(part for part in self.content if not isinstance(part, Text))
        return Message(self.role, (Text(text), *others))


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One guarded request: who asks, in which session, under which trace.

    `subject` is whose data the call holds (the unit of erasure and of storage): the session unless
    set. `trace_id` and `parent_id` are W3C Trace Context hexadecimal ids.
    """

    id: str
    session: str
    subject: str
    actor: str | None = None
    trace_id: str | None = None
    parent_id: str | None = None
    tags: dict[str, str] = {}


class Document(msgspec.Struct, frozen=True, tag="document"):
    """A retrieved document offered to the model."""

    id: str
    text: str
    source: str | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One possible answer, as it stands.

    Checks and revisions may have changed it since the model gave it.
    """

    index: int
    content: tuple[Part, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """The text parts joined."""
        return text_of(self.content)

    def with_content(self, content: tuple[Part, ...]) -> Candidate:
        """Return this candidate with other content."""
        return msgspec.structs.replace(self, content=content)


class Critique(msgspec.Struct, frozen=True):
    """What a constitutional plugin holds against (or for) a candidate.

    Score 1 is full compliance, 0 a breach.
    """

    principle: str
    score: float
    reason: str = ""


class Ranking(msgspec.Struct, frozen=True):
    """An order of candidates, best first, by their `index`; `scores` in the same order."""

    order: tuple[int, ...]
    scores: tuple[float, ...] = ()


class Span(msgspec.Struct, frozen=True):
    """A half-open range of characters `[start, end)` in the judged text, and why it is marked."""

    start: int
    end: int
    label: str


class _Verdict(msgspec.Struct, frozen=True, kw_only=True):
    score: float | None = None
    spans: tuple[Span, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> VerdictName:
        """The verdict's name as it stands in records."""
        return self.__struct_config__.tag  # type: ignore[return-value]


class Allow(_Verdict, frozen=True, tag="allow"):
    """Nothing to object to."""


class Block(_Verdict, frozen=True, tag="block"):
    """The call must not go on; the caller gets the policy's refusal text."""

    reason: str


class Replace(_Verdict, frozen=True, tag="replace"):
    """Go on with other content.

    Text, parts, (in `pre_filter`) all messages, (in `retrieved`) the documents that remain.
    """

    content: str | tuple[Part | Message | Document, ...]
    reason: str = ""


class Retry(_Verdict, frozen=True, tag="retry"):
    """Ask the model again, with this feedback; bounded by the policy's `max_rounds`."""

    feedback: str


class Flag(_Verdict, frozen=True, tag="flag"):
    """Let it pass, and leave a mark in the log."""

    reason: str


class AskHuman(_Verdict, frozen=True, tag="ask_human"):
    """A person must decide."""

    reason: str


Verdict = Allow | Block | Replace | Retry | Flag | AskHuman
VERDICTS = (Allow, Block, Replace, Retry, Flag, AskHuman)
