"""Records: what is written to the log for a call.

A call writes an `Intent` (after the pre-filters, before the model) and a `Result` (before the
answer is released). A plugin's effect before the intent writes an `Opening` first, so that nothing
touches the world without a trace. A log that could not record something says so in a `Gap`, one
from which content was erased in a `Tombstone`.

A record proper holds nothing derived from content: ids, times, names, counts, settings, digests of
artefacts. Content travels beside it as named payloads, each of canonical bytes; the log stores a
payload once within its subject and puts only a salted commitment into the record's leaf, so that
content can be erased while every hash still holds.

Payload names ``policy``      the policy as written, JSON (shared: the same for everyone, unsalted);
    in the intent ``message/N``   message N of the call's message table: every distinct message of
    the call, numbered by first
                    appearance (a `Message` each). The intent carries those known by then, the
                    result those that came later (feedback of a retry, a plugin's nested generation)
    ``request``     intent: `RequestContent`
    ``events``      `tuple[Event, ...]` of this record; the intent's come before the result's
    ``output``      result: `Output`
    ``pending``     result: `Pending`, of a call that waits for a person
    ``text``        segment: the released piece, a JSON string
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .events import Event
from .generation import Identity, Sampling, Usage
from .vocabulary import Candidate, Document, Message, Part, Stage, VerdictName

SCHEMA_VERSION = 2
"""2 added segments of streams, resumed calls, gaps, tombstones and the events `decided` and
`scored` to 1, which is a part of it: what version 1 wrote is read as it stands."""


class CheckIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which code judged, and how it was set.

    `use` is the registered name (``pii``) or the qualified name of a callable; `settings` the
    digest of the plugin's settings (of an instance's attributes, where it is no struct); `code` the
    digest of its code, and `code_partial` true where not everything that it runs or was given could
    be digested.
    It identifies; it does not authenticate.
    """

    id: str
    use: str
    stages: tuple[str, ...]
    package: str | None
    version: str | None
    order: int
    settings: str
    code: str
    code_partial: bool
    kind: Literal["plugin", "callable"]


class EventHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an event that holds no content: it stays when the content is erased."""

    sequence: int
    type: str
    stage: str
    check: str | None
    round: int
    verdict: str | None
    duration_ns: int


def header_of(event: Event) -> EventHeader:
    """Return the content-free part of an event: what a record may hold itself."""
    verdict = getattr(event, "verdict", None)
    return EventHeader(
        sequence=event.sequence,
        type=event.__struct_config__.tag,  # type: ignore[arg-type]
        stage=event.stage,
        check=event.check,
        round=event.round,
        verdict=verdict.name if verdict is not None else getattr(event, "became", None),
        duration_ns=getattr(event, "duration_ns", 0),
    )


class Masked(msgspec.Struct, frozen=True):
    """A place in a payload from which something was taken before it was recorded.

    `pointer` is a JSON pointer (RFC 6901) into the payload; it ends where plain data begins, whose
    keys are content.
    """

    payload: str
    pointer: str


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    schema: int = SCHEMA_VERSION
    call_id: str
    session: str
    subject: str
    wall_ns: int
    """Wall clock, nanoseconds since 1970-01-01 UTC. Order is by log sequence, never by time."""
    monotonic_ns: int
    host: str
    process: int
    masked: tuple[Masked, ...] | msgspec.UnsetType = msgspec.UNSET
    """What of its payloads was masked (`isonomy.sdk.masking`); not written where nothing was."""


class Opening(_Record, frozen=True, tag="opening"):
    """A plugin is about to touch the outside world before the intent is known."""

    check: str
    effect: str


class Intent(_Record, frozen=True, tag="intent"):
    """What is about to happen.

    Request, policy, backend. Follows the pre-filters, precedes the model.
    """

    operation: str
    """``chat``, ``stream``, ``resume``, or ``import`` of a call that others recorded."""
    actor: str | None
    trace_id: str | None
    parent_id: str | None
    tags: dict[str, str]
    identity: Identity
    sampling: Sampling
    policy_name: str
    policy_digest: str
    checks: tuple[CheckIdentity, ...]
    versions: dict[str, str]
    events: tuple[EventHeader, ...] = ()
    backends: dict[str, Identity] = {}
    """The guard's further backends by name, which plugins may ask."""
    resumes: str | None = None
    """The call that waited for a person, where this one goes on with it."""


class Result(_Record, frozen=True, tag="result"):
    """What happened.

    `verdict` is the strongest that applied; `error` names the type if the call ended in one.
    """

    verdict: VerdictName
    finish_reason: str | None
    usage: Usage
    rounds: int
    duration_ns: int
    error: str | None = None
    first_released_ns: int | None = None
    """From the call's begin to its first released segment, in a stream."""
    stalled: dict[str, int] = {}
    """By round: the beginning of the answer, in characters, about which a check was asked in
    mid-stream and missed its deadline, so that nothing more left before the whole was judged."""
    token: str | None = None
    """The digest of the token by which a call that waits for a person is resumed."""
    events: tuple[EventHeader, ...] = ()


class Segment(_Record, frozen=True, tag="segment"):
    """A piece of an answer that is about to be released from a stream.

    `number` counts the call's segments from 0; `start` is where it begins in the released text, in
    characters.
    """

    number: int
    start: int


class Gap(_Record, frozen=True, tag="gap"):
    """What a log could not record while calls went on, written as soon as it can be.

    It belongs to no call: its own id begins with ``gap-``. It precedes every record that this
    process wrote after the loss.
    """

    since_ns: int
    """Wall clock of the first loss; `until_ns` is that of this record."""
    until_ns: int
    entries: int
    """How many records were lost, of `calls` calls that are named in `lost`, and of others."""
    calls: int
    lost: dict[str, dict[str, int]]
    """By call id: how many records of which kind were lost."""
    unnamed: int
    """How many of `entries` are of calls that are not in `lost`, since it had grown too long."""
    reason: str
    """The error of the first loss."""


class Erased(msgspec.Struct, frozen=True):
    """Payloads of a record, by the record's number in the log."""

    sequence: int
    payloads: tuple[str, ...]


class Tombstone(_Record, frozen=True, tag="tombstone"):
    """Content was erased from the log; what is listed here is no longer there, and no damage.

    It belongs to no call: its own id begins with ``tombstone-``. Of each erasure there is one from
    before it began (`done` is false), and one from when nothing was left.
    """

    what: Literal["call", "subject"]
    target: str
    """The call's id, or the subject."""
    by: str
    """Who had it erased."""
    reason: str
    done: bool
    erased: tuple[Erased, ...]
    kept: tuple[Erased, ...] = ()
    """What stays, since other calls of the same subject hold the same."""


Record = Opening | Intent | Segment | Result | Gap | Tombstone


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for a person (payload ``pending`` of the result): the call where it stood.

    `stage` is where checks asked; `messages` are numbers into the call's message table;
    `candidate` is the answer that waits, where the model has answered already. `beside` says that
    checks beside the model asked: at `pre_filter`, but after the others had let the messages pass.
    """

    stage: Stage
    messages: tuple[int, ...]
    documents: tuple[Document, ...] = ()
    candidate: Candidate | None = None
    beside: bool = False


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """With what a call goes on that waited for a person.

    What was pending, what the person decided, and for `edit` what they put in its place. `beside`
    is as in `Pending`.
    """

    stage: Stage
    decision: Literal["approve", "edit", "reject"]
    by: str | None = None
    reason: str = ""
    candidate: Candidate | None = None
    edited: str | tuple[Part | Message | Document, ...] | None = None
    beside: bool = False


class RequestContent(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller asked for (payload ``request``).

    `messages` are the messages as passed, `admitted` what the pre-filters left of them (`None`
    where they blocked), both as numbers into the message table.
    """

    messages: tuple[int, ...]
    admitted: tuple[int, ...] | None
    documents: tuple[Document, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    resumption: Resumption | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What was released to the caller (payload ``output``).

    `refusal` says that `text` is the policy's refusal. `check` and `reason` tell whose verdict
    decided and why; `error` is the message of an error that ended the call.
    """

    text: str | None
    content: tuple[Part, ...] = ()
    refusal: bool = False
    check: str | None = None
    reason: str | None = None
    error: str | None = None


class Payload(msgspec.Struct, frozen=True):
    """A named piece of content.

    Canonical bytes. `shared` content is the same for everyone and needs no salt.
    """

    name: str
    body: bytes
    shared: bool = False


class Entry(msgspec.Struct, frozen=True):
    """A record with its payloads, as handed to the log in one piece."""

    record: Record
    payloads: tuple[Payload, ...] = ()
