"""Calls for notebooks and other tools: what was said and what was decided, a JSON object a line.

Not everything that the log holds is here, nor exactly as it was hashed: for that there is `jsonl`.
What was erased, or is of a shape that this version doesn't know, is `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from isonomy.sdk.events import BackendFailed, Event, Failed, Generated, Judged
from isonomy.sdk.generation import Sampling
from isonomy.sdk.records import RequestContent
from isonomy.sdk.vocabulary import Message, Part, Text

from ..stored import StoredCall, StoredRecord
from .jsonl import problem_of
from .selecting import EVERYTHING, Selection, examined

if TYPE_CHECKING:
    from ..reading import ReplayLog

_T = TypeVar("_T")


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message.

    Attributes:
        role: system, user, assistant or tool.
        text: its text.
        parts: all of it, where it is more than one text: tool calls and results, images ...
    """

    role: str
    text: str
    parts: tuple[Part, ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a check said, or what became of its failure.

    Attributes:
        check: its id in the policy; `None` where no check judged.
        stage: where it was asked.
        target: what it judged, as ``message/0`` or ``candidate/0``.
        round: regeneration, from 0.
        verdict: what it said; `None` where it abstained.
        reason: why.
        score: its score, if it gave one.
        shadow: whether it is on trial, and changed nothing.
        error: the type of error in which it failed.
    """

    check: str | None
    stage: str
    target: str
    round: int
    verdict: str | None
    reason: str | None = None
    score: float | None = None
    shadow: bool = False
    error: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered, or that it did not.

    Attributes:
        purpose: answer, or nested for one that a check asked for.
        candidate: number of the candidate.
        round: regeneration, from 0.
        backend: which of the guard's further backends; `None` is the call's own.
        model: what answered.
        text: what it said.
        finish_reason: why it stopped.
        input_tokens: fed to it, where known.
        output_tokens: given by it, where known.
        duration_ms: how long it took.
        error: the type of error, where it did not answer.
    """

    purpose: str
    candidate: int
    round: int
    backend: str | None
    model: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    duration_ms: float = 0.0
    error: str | None = None


class CallSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A call, one line of an export of the form ``calls``.

    Attributes:
        call_id: its id.
        sequence: the log's number of its first record: the order of the log.
        status: complete, or unfinished where the log has no result.
        started_at: wall clock at the first record, UTC.
        duration_ms: of the whole call.
        session: the conversation that it belongs to.
        subject: whose data it holds.
        actor: who asked.
        operation: chat, stream, resume or import.
        provider: who was asked.
        model: which model was asked for.
        policy: the name of the policy that judged.
        policy_digest: its digest.
        tags: the application's.
        sampling: how answers were drawn.
        tools: what the model was offered.
        messages: as the caller passed them.
        output_text: what was released.
        output_parts: all of it, where it is more than one text.
        refusal: whether the released text is the policy's refusal.
        verdict: the strongest that applied.
        check: whose verdict decided.
        reason: why.
        error: the type of error that ended the call.
        finish_reason: why the answer ends where it ends.
        input_tokens: of all generations, where known.
        output_tokens: of all generations, where known.
        rounds: generations that it took.
        decisions: of every check, in order.
        answers: of every model, in order.
    """

    call_id: str
    sequence: int
    status: str
    started_at: datetime
    duration_ms: float | None
    session: str
    subject: str
    actor: str | None
    operation: str | None
    provider: str | None
    model: str | None
    policy: str | None
    policy_digest: str | None
    tags: dict[str, str]
    sampling: Sampling | None
    tools: tuple[dict[str, Any], ...]
    messages: tuple[Said, ...] | None
    output_text: str | None
    output_parts: tuple[Part, ...]
    refusal: bool | None
    verdict: str | None
    check: str | None
    reason: str | None
    error: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    rounds: int | None
    decisions: tuple[Decision, ...]
    answers: tuple[Answer, ...]


def export_calls(
    log: ReplayLog,
    selection: Selection = EVERYTHING,
    *,
    damaged: Callable[[str, str], None],
) -> Iterator[bytes]:
    """Yield selected calls as lines of JSON without line breaks; see `jsonl.export_lines`."""
    for call in stored_calls(log, selection, damaged=damaged):
        yield msgspec.json.encode(summary_of(call))


def stored_calls(
    log: ReplayLog,
    selection: Selection = EVERYTHING,
    *,
    damaged: Callable[[str, str], None],
) -> Iterator[StoredCall]:
    """Yield selected calls decoded, but for damaged ones, which `damaged` is told of."""
    for call_id, records in examined(log, selection):
        problem = problem_of(records)
        if problem is not None:
            damaged(call_id, problem)
            continue
        yield StoredCall(call_id=call_id, records=tuple(map(StoredRecord.of, records)))


def summary_of(call: StoredCall) -> CallSummary:
    """Return what was said and decided in a call that has records."""
    first, intent, result = call.records[0], call.intent, call.result
    assert first.record is not None
    request = readable_or_none(lambda: call.request)
    output = readable_or_none(lambda: call.output)
    events = readable_or_none(lambda: call.events) or ()
    content = output.content if output is not None else ()
    return CallSummary(
        call_id=call.call_id,
        sequence=first.sequence,
        status=call.status,
        started_at=_time(first.record.wall_ns),
        duration_ms=result.duration_ns / 1e6 if result is not None else None,
        session=first.record.session,
        subject=first.record.subject,
        actor=intent.actor if intent is not None else None,
        operation=intent.operation if intent is not None else None,
        provider=intent.identity.provider if intent is not None else None,
        model=intent.identity.model if intent is not None else None,
        policy=intent.policy_name if intent is not None else None,
        policy_digest=intent.policy_digest if intent is not None else None,
        tags=intent.tags if intent is not None else {},
        sampling=intent.sampling if intent is not None else None,
        tools=request.tools if request is not None else (),
        messages=_messages(call, request),
        output_text=output.text if output is not None else None,
        output_parts=() if _is_plain(content) else content,
        refusal=output.refusal if output is not None else None,
        verdict=result.verdict if result is not None else None,
        check=output.check if output is not None else None,
        reason=output.reason if output is not None else None,
        error=result.error if result is not None else None,
        finish_reason=result.finish_reason if result is not None else None,
        input_tokens=result.usage.input_tokens if result is not None else None,
        output_tokens=result.usage.output_tokens if result is not None else None,
        rounds=result.rounds if result is not None else None,
        decisions=tuple(_decision(e) for e in events if isinstance(e, Judged | Failed)),
        answers=tuple(_answer(e) for e in events if isinstance(e, Generated | BackendFailed)),
    )


def readable_or_none(read: Callable[[], _T]) -> _T | None:
    """Return what is decoded; `None` where it is of a shape that this version doesn't know."""
    try:
        return read()
    except msgspec.MsgspecError:
        return None


def _time(wall_ns: int) -> datetime:
    try:
        return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).replace(
            microsecond=wall_ns // 1000 % 1_000_000
        )
    except (ValueError, OverflowError, OSError):  # no calendar has it
        return datetime.fromtimestamp(0, UTC)


def _messages(call: StoredCall, request: RequestContent | None) -> tuple[Said, ...] | None:
    table: dict[int, Message] | None = readable_or_none(lambda: call.messages)
    if request is None or table is None or any(each not in table for each in request.messages):
        return None
    said = (table[number] for number in request.messages)
    return tuple(
        Said(
            role=message.role,
            text=message.text,
            parts=() if _is_plain(message.content) else message.content,
        )
        for message in said
    )


def _is_plain(content: tuple[Part, ...]) -> bool:
    return not content or (len(content) == 1 and isinstance(content[0], Text))


def _decision(event: Event) -> Decision:
    assert isinstance(event, Judged | Failed)
    place: dict[str, Any] = {
        "check": event.check,
        "stage": event.stage,
        "target": event.target,
        "round": event.round,
        "shadow": event.shadow,
    }
    if isinstance(event, Failed):
        return Decision(**place, verdict=event.became, reason=event.message, error=event.error)
    verdict = event.verdict
    if verdict is None:
        return Decision(**place, verdict=None)
    reason = getattr(verdict, "reason", getattr(verdict, "feedback", None))
    return Decision(**place, verdict=verdict.name, reason=reason, score=verdict.score)


def _answer(event: Event) -> Answer:
    assert isinstance(event, Generated | BackendFailed)
    place: dict[str, Any] = {
        "purpose": event.purpose,
        "candidate": event.candidate,
        "round": event.round,
        "backend": event.backend,
        "duration_ms": event.duration_ns / 1e6,
    }
    if isinstance(event, BackendFailed):
        return Answer(**place, error=event.error)
    generation = event.generation
    return Answer(
        **place,
        model=generation.model,
        text=generation.text,
        finish_reason=generation.finish_reason,
        input_tokens=generation.usage.input_tokens,
        output_tokens=generation.usage.output_tokens,
    )
