"""Performing a call: the one code path of live calls and replays.

A `Performance` says what to do and in which world. Live, a `Scribe` writes the intent before the
model is asked and the result before the reply is released, and `LogError` stops the call where it
stands; a replay has no scribe, and its trail is compared instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .asking import Waiting
from .canonical import carriable, own
from .diagnostics import logger
from .errors import IsonomyError, LogError
from .events import Event, Generated
from .generation import Request, Sampling, Usage
from .pipeline import Pipeline
from .policy import Policy
from .records import Output, RequestContent
from .scribe import Scribe
from .trail import Trail
from .vocabulary import Call, Candidate, Document, Message, Part, Text, VerdictName, text_of
from .workers import Workers
from .world import World


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a guarded call gives back.

    `text` is the answer, or the policy's refusal if `verdict` is ``block`` or ``ask_human``.
    `check` and `reason` say whose verdict decided, and why; show them to developers, not to end
    users.
    """

    call_id: str
    text: str
    verdict: VerdictName
    check: str | None
    reason: str | None
    output: Output
    finish_reason: str | None
    usage: Usage
    events: tuple[Event, ...]

    @property
    def blocked(self) -> bool:
        """Whether the refusal stands in for an answer."""
        return self.verdict in ("block", "ask_human")


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """One performance of a call, live or replayed: what to do, in which world."""

    call: Call
    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()
    request: Request
    sampling: Sampling
    world: World


async def perform(
    performance: Performance,
    *,
    policy: Policy,
    waiting: Waiting,
    workers: Workers,
    scribe: Scribe | None = None,
    observers: tuple[Any, ...] = (),
    trail_out: list[Trail] | None = None,
) -> Reply:
    """Perform a call: the one code path of live calls and replays.

    Raises:
        IsonomyError: the model did not answer; the result is recorded first.
        LogError: a record could not be made durable.
    """
    started = time.perf_counter_ns()
    call = performance.call
    trail = Trail(
        performance.world,
        sampling=performance.sampling,
        observe=_observer(call, observers),
        before_effect=scribe.opening if scribe is not None else None,
    )
    if trail_out is not None:
        trail_out.append(trail)
    asked = trail.number(performance.messages)
    pipeline = Pipeline(policy, call, trail, waiting=waiting, workers=workers)
    admitted = await pipeline.admit(performance.messages, performance.documents)
    entries = []
    if scribe is not None:
        content = RequestContent(
            messages=asked,
            admitted=trail.number(admitted) if admitted is not None else None,
            documents=performance.documents,
            tools=performance.request.tools,
            response_format=performance.request.response_format,
            extra=performance.request.extra,
        )
        entries.append(scribe.intent(performance.sampling, trail, content))
    candidate: Candidate | None = None
    failure: IsonomyError | None = None
    if admitted is not None:
        if scribe is not None:
            await waiting.run(lambda: scribe.append(entries), workers)
            entries = []
        trail.settled()
        try:
            candidate = await pipeline.answer(admitted, performance.sampling, performance.request)
        except LogError:
            raise
        except IsonomyError as error:
            failure = error
    standing = pipeline.standing
    reason = trail.scrub_text(standing.reason) if standing.reason else standing.reason
    refused = candidate is None and failure is None
    content_out: tuple[Part, ...] = ()
    if candidate is not None:
        content_out = candidate.content
    elif refused:
        content_out = (Text(policy.refusal),)
    finish = candidate.finish_reason if candidate else ("content_filter" if refused else None)
    output = Output(
        text=text_of(content_out) if failure is None else None,
        content=content_out,
        refusal=refused,
        check=standing.check,
        reason=reason,
        error=carriable(str(failure)) if failure else None,
    )
    usage = _usage(trail.events)
    if scribe is not None:
        name = type(failure).__name__ if failure else None
        entries.append(
            scribe.result(
                trail,
                standing,
                output,
                usage=usage,
                finish_reason=finish,
                rounds=pipeline.rounds,
                error=name,
                duration_ns=time.perf_counter_ns() - started,
            )
        )
        await waiting.run(lambda: scribe.append(entries), workers)
    if failure is not None:
        raise failure
    return Reply(
        call_id=call.id,
        text=output.text or "",
        verdict=standing.verdict,
        check=standing.check,
        reason=reason,
        output=output,
        finish_reason=finish,
        usage=usage,
        events=tuple(trail.events),
    )


def _observer(call: Call, observers: tuple[Any, ...]) -> Callable[[Event], None] | None:
    if not observers:
        return None

    def show(event: Event) -> None:
        for function, names in observers:
            offered = {"call": own(call), "event": own(event)}  # an observer's own
            try:
                function(**{name: offered[name] for name in names})
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # an exporter must never change a call
                logger().warning(
                    "observer_failed",
                    call_id=call.id,
                    error=type(error).__name__,
                )

    return show


def _usage(events: Sequence[Event]) -> Usage:
    usages = [event.generation.usage for event in events if isinstance(event, Generated)]
    if not usages:
        return Usage(0, 0)
    return Usage(
        _sum([usage.input_tokens for usage in usages]), _sum([u.output_tokens for u in usages])
    )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
