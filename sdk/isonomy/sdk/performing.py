"""Performing a call: the one code path of live calls and replays, streamed or not.

A `Performance` says what to do and in which world. Live, a `Scribe` writes the intent before the
model is asked and the result before the reply is released, and `LogError` stops the call where it
stands; a replay has no scribe, and its trail is compared instead.

A call that was begun ends with a result in the log, whatever ends it: an answer, a refusal, an
error, or a caller who goes away in the middle (error ``Cancelled``). With an `Outlet` the answer
leaves piece by piece while the model gives it (`isonomy.sdk.releasing`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .asking import Blocking, Waiting
from .canonical import carriable
from .diagnostics import bind, logger, unbind
from .errors import Cancelled, IsonomyError, LogError
from .events import Effect, Event, Generated, Judged, Revised
from .generation import Request, Sampling, Usage
from .hooks import Hooks
from .pipeline import Pipeline
from .policy import Policy
from .records import Entry, Output, Pending, RequestContent, Resumption
from .scribe import Scribe
from .trail import Trail
from .vocabulary import Call, Candidate, Document, Message, Part, Text, VerdictName
from .workers import Workers
from .world import World

if TYPE_CHECKING:
    # Loaded on use: most calls are not streamed, not refused after an answer, and not observed.
    from .observing import Observers
    from .releasing import Streaming
    from .resuming import Left
    from .streaming import Prefix


_ABOUT_ANSWERS = ("critique", "revise", "rank", "tool_call", "post_validate")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a guarded call gives back.

    `text` is the answer, or the policy's refusal if `verdict` is ``block`` or ``ask_human`` (in a
    stream, and in a call whose policy lets answers be streamed, after what of the answer had left
    before it was stopped). `check` and `reason` say whose verdict decided, and why; show them to
    developers, not to end users.
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
    token: str | None = None
    """Resumes the call, once, where a person must decide (`Guard.resume`)."""

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
    resumes: str | None = None
    """The call that waited for a person, where this one goes on with it; and with what:"""
    resumption: Resumption | None = None
    stalled: dict[str, int] = {}
    """Where checks missed their deadline in mid-stream, as recorded; see `Result`."""


async def perform(
    performance: Performance,
    *,
    policy: Policy,
    waiting: Waiting,
    workers: Workers,
    scribe: Scribe | None = None,
    observers: tuple[Hooks, ...] = (),
    trail_out: list[Trail] | None = None,
    streaming: Streaming | None = None,
    keep: Callable[[Left], None] | None = None,
) -> Reply:
    """Perform a call: the one code path of live calls and replays.

    Args:
        performance: what to do.
        policy: judges it.
        waiting: how to wait.
        workers: for checks.
        scribe: writes the records of a live call that is logged.
        observers: see every event, and the call's begin and end.
        trail_out: is given the call's trail, for a replay to compare.
        streaming: for a stream, `waiting` again: the answer leaves by its outlet.
        keep: is given what a call leaves that waits for a person, where its log does not keep it.

    Raises:
        IsonomyError: the model did not answer; the result is recorded first.
        LogError: a record could not be made durable.
        BaseException: the caller was cancelled or interrupted; the result is recorded first.
    """
    bound = bind(performance.call.id)
    seen_by = _observing(performance, observers) if observers else None
    performing = _Performing(
        performance, policy, waiting, workers, scribe, seen_by, streaming, keep
    )
    if trail_out is not None:
        trail_out.append(performing.trail)
    reply: Reply | None = None
    ended: BaseException | None = None
    try:
        reply = await performing.perform()
        return reply
    except LogError as error:
        ended = error
        raise
    except GeneratorExit as error:  # nothing can be awaited any more
        ended = error
        performing.break_off("Cancelled")
        with _unrecorded(performance.call):
            performing.append()
        raise
    except BaseException as error:
        ended = error
        performing.break_off(_ended_by(error))
        with _unrecorded(performance.call):
            await performing.record()
        raise
    finally:
        if seen_by is not None:
            seen_by.end(reply, ended)
        unbind(bound)


def give_up(
    performance: Performance, *, policy: Policy, workers: Workers, scribe: Scribe | None
) -> None:
    """Record the end of a call whose caller went away before it was performed."""
    performing = _Performing(performance, policy, Blocking(), workers, scribe, None, None, None)
    performing.break_off(Cancelled.__name__)
    with _unrecorded(performance.call):
        performing.append()


def _observing(performance: Performance, observers: tuple[Hooks, ...]) -> Observers:
    from .observing import Observers

    return Observers(performance, observers)


class _Performing:
    """A call that is being performed."""

    def __init__(
        self,
        performance: Performance,
        policy: Policy,
        waiting: Waiting,
        workers: Workers,
        scribe: Scribe | None,
        observers: Observers | None,
        streaming: Streaming | None,
        keep: Callable[[Left], None] | None,
    ) -> None:
        self._started = time.perf_counter_ns()
        self._performance = performance
        self._policy = policy
        self._waiting = waiting
        self._workers = workers
        self._scribe = scribe
        self._keep = keep
        self._token: str | None = None
        self.trail = Trail(
            performance.world,
            sampling=performance.sampling,
            observe=observers.event if observers is not None else None,
            before_effect=scribe.opening if scribe is not None else None,
        )
        if scribe is not None:
            self.trail.marking = scribe.marking
        self._pipeline = Pipeline(
            policy,
            performance.call,
            self.trail,
            waiting=waiting,
            workers=workers,
            released=self._left,
            resumption=performance.resumption,
        )
        self._outlet = streaming.outlet if streaming is not None else None
        if streaming is not None:
            streaming.begin, streaming.release = self._prefix, self._release
            streaming.outlet.started = self._started
        self._stalled: dict[str, int] = {}
        self._intended = False
        self._ended = False
        self._entries: list[Entry] = []
        self._appending = False

    async def perform(self) -> Reply:
        performance, pipeline = self._performance, self._pipeline
        asked = self.trail.number(performance.messages)
        admitted = await pipeline.admit(performance.messages, performance.documents)
        self._intend(asked, admitted)
        candidate: Candidate | None = None
        failure: IsonomyError | None = None
        if admitted is not None:
            if self._entries:
                await self.record()
            self.trail.settled()
            try:
                candidate = await pipeline.answer(
                    admitted, performance.sampling, performance.request
                )
            except (LogError, Cancelled):
                raise
            except IsonomyError as error:
                failure = error
        left = ""
        if failure is None and admitted is not None:
            left, candidate = await self._reconciled(candidate)
        output, finish = self._output(candidate, failure, left)
        return await self._end(output, finish, failure)

    async def _reconciled(self, candidate: Candidate | None) -> tuple[str, Candidate | None]:
        """Return what left before the whole was judged, and what may follow it, if anything may."""
        standing = self._pipeline.standing
        if candidate is not None and self._outlet is None and not self._judged_again(candidate):
            return "", candidate  # a beginning of it, if anything
        left = await self._left()
        if candidate is None:
            if left:  # half an answer can't wait for anybody
                standing.note("block", standing.check, standing.reason)
        elif not candidate.text.startswith(left):
            standing.note(
                "block",
                None,
                "what had been released of the answer is no beginning of what was made of it",
            )
            candidate = None
        return left, candidate

    def _judged_again(self, candidate: Candidate) -> bool:
        """Return whether something was replaced after a check had judged it already.

        In mid-stream that could not be foreseen, so what a stream had released until then may be no
        beginning of the answer.
        """
        if self._pipeline.standing.verdict == "allow" or candidate.text == self._raw():
            return False
        asked: set[str | None] = set()
        for event in self.trail.events:
            if event.round != self._pipeline.rounds or getattr(event, "shadow", False):
                continue
            if isinstance(event, Revised):
                return True
            if isinstance(event, Judged) and event.stage == "post_validate":
                if event.check in asked:
                    return True
                asked.add(event.check)
        return False

    def _raw(self) -> str:
        """Return the model's last answer as it gave it."""
        for event in reversed(self.trail.events):
            if isinstance(event, Generated) and event.purpose == "answer":
                return event.generation.text
        return ""

    # What leaves before the whole is judged

    def _prefix(self) -> Prefix | None:
        """Return what holds back an answer; `None` where all of it is held."""
        from .releasing import consent
        from .streaming import Prefix, readers

        performance, round = self._performance, self._pipeline.rounds
        found = readers(self._policy, tools=bool(performance.request.tools))
        if found is None:
            return None

        def stalled() -> None:
            self._stalled[str(round)] = prefix.asked_at

        async def asked(check: Any, text: str) -> str | None:
            return await consent(
                check,
                text,
                call=performance.call,
                world=performance.world,
                waiting=self._waiting,
                workers=self._workers,
                stalled=stalled,
            )

        at = performance.stalled.get(str(round))
        prefix = Prefix(
            found,
            asked,
            passes=self._policy.max_rounds + 1,
            until=None if at is None else at - 1,
        )
        return prefix

    async def _left(self) -> str:
        """Return what of the model's last answer left, or would have left of a stream."""
        if self._outlet is not None:
            return self._outlet.text
        prefix = self._prefix()
        if prefix is None:
            return ""
        await prefix.feed(self._raw())
        may = prefix.text and not self._secret_before() and await self._pipeline.cleared()
        return prefix.text if may else ""

    async def _may_leave(self) -> bool:
        # A secret that comes in two pieces would be scrubbed from neither record.
        return await self._pipeline.cleared() and not self.trail.secrets

    def _secret_before(self) -> bool:
        """Return whether a check had taken a secret before the last answer was there."""
        return bool(self.trail.secrets) and any(
            isinstance(event, Effect)
            and event.kind == "secret"
            and (event.round != self._pipeline.rounds or event.stage not in _ABOUT_ANSWERS)
            for event in self.trail.events
        )

    async def _release(self, piece: str) -> bool:
        """Record a piece of the answer and let it go."""
        assert self._outlet is not None
        self._outlet.gate()
        if not self._outlet.text and not await self._may_leave():
            return False
        self._segment(piece)
        await self.record()
        self._outlet.recorded(piece)
        await self._outlet.let_go(piece)
        return True

    # What is recorded

    async def record(self) -> None:
        """Make what is to be recorded durable."""
        if self._entries:
            await self._waiting.run(self.append, self._workers)

    def append(self) -> None:
        """Make what is to be recorded durable, in this thread."""
        if self._entries and self._scribe is not None:
            self._appending = True
            self._scribe.append(self._entries)
            self._entries = []
            self._appending = False

    def _intend(self, asked: tuple[int, ...], admitted: tuple[Message, ...] | None) -> None:
        self._intended = True
        if self._scribe is None:
            if admitted is not None and self._performance.world.recorded:
                self.trail.number(admitted)  # as it was when it was recorded
            return
        performance = self._performance
        content = RequestContent(
            messages=asked,
            admitted=self.trail.number(admitted) if admitted is not None else None,
            documents=performance.documents,
            tools=performance.request.tools,
            response_format=performance.request.response_format,
            extra=performance.request.extra,
            resumption=performance.resumption,
        )
        operation: Literal["chat", "stream", "resume"] = "chat"
        if performance.resumption is not None:
            operation = "resume"
        elif self._outlet is not None:
            operation = "stream"
        self._entries.append(
            self._scribe.intent(
                performance.sampling,
                self.trail,
                content,
                operation=operation,
                resumes=performance.resumes,
            )
        )

    def _segment(self, piece: str) -> None:
        if self._scribe is not None and self._outlet is not None:
            outlet = self._outlet
            self._entries.append(
                self._scribe.segment(
                    self.trail, piece, number=outlet.segments, start=len(outlet.text)
                )
            )

    def _result(self, output: Output, finish: str | None, error: str | None) -> Usage:
        """Prepare the result record; return the call's usage."""
        usage = _usage(self.trail.events)
        self._ended = True
        token, pending = self._waiting_for_a_person(error)
        if self._scribe is not None:
            first = self._outlet.first_ns if self._outlet is not None else None
            self._entries.append(
                self._scribe.result(
                    self.trail,
                    self._pipeline.standing,
                    output,
                    usage=usage,
                    finish_reason=finish,
                    rounds=self._pipeline.rounds,
                    error=error,
                    duration_ns=time.perf_counter_ns() - self._started,
                    first_released_ns=first,
                    stalled=self._stalled,
                    token=token,
                    pending=pending,
                )
            )
        return usage

    def _waiting_for_a_person(self, error: str | None) -> tuple[str | None, Pending | None]:
        """Return the digest of the token of a call that waits, and what it leaves, if it does."""
        waits = self._pipeline.waits if error is None else None
        if waits is None:
            return None, None
        stood = waits.stood()
        messages = self.trail.number(stood.messages)  # in a replay too
        if self._scribe is None and self._keep is None:
            return None, None
        from .resuming import Left, digest_of_token, new_token

        self._token = new_token(self._performance.call.id)
        token = digest_of_token(self._token)
        if self._keep is not None:
            self._keep(
                Left(
                    call=self._performance.call,
                    token=token,
                    stage=waits.stage,
                    beside=waits.beside,
                    stood=stood,
                    request=self._performance.request,
                    sampling=self._performance.sampling,
                )
            )
        return token, Pending(
            stage=waits.stage,
            messages=messages,
            documents=stood.documents,
            candidate=stood.candidate,
            beside=waits.beside,
        )

    def _output(
        self, candidate: Candidate | None, failure: IsonomyError | None, left: str
    ) -> tuple[Output, str | None]:
        """Return what the caller gets, and why the answer ends where it ends."""
        standing = self._pipeline.standing
        refused = candidate is None and failure is None
        content: tuple[Part, ...] = ()
        text: str | None = None
        if candidate is not None:
            content, text = candidate.content, candidate.text
        elif refused:
            text = self._policy.refusal
            if left:
                from .streaming import joined

                text = joined(left, text)
            content = (Text(text),)
        elif self._outlet is not None and self._outlet.text:
            text = self._outlet.text
            content = (Text(text),)
        output = Output(
            text=text,
            content=content,
            refusal=refused,
            check=standing.check,
            reason=self.trail.scrub_text(standing.reason) if standing.reason else standing.reason,
            error=carriable(str(failure)) if failure else None,
        )
        if candidate is not None:
            return output, candidate.finish_reason
        return output, "content_filter" if refused else None

    async def _end(self, output: Output, finish: str | None, failure: IsonomyError | None) -> Reply:
        """Record the result, let go what has not left yet, and return the reply."""
        piece = ""
        if self._outlet is not None and failure is None:
            piece = (output.text or "")[len(self._outlet.text) :]
        if piece and self._outlet is not None:
            self._segment(piece)
            self._outlet.recorded(piece)
        usage = self._result(output, finish, type(failure).__name__ if failure else None)
        if self._entries:
            await self.record()
        if failure is not None:
            failure.call_id = self._performance.call.id
            raise failure
        if piece and self._outlet is not None:
            await self._outlet.let_go(piece)
        standing = self._pipeline.standing
        return Reply(
            call_id=self._performance.call.id,
            text=output.text or "",
            verdict=standing.verdict,
            check=standing.check,
            reason=output.reason,
            output=output,
            finish_reason=finish,
            usage=usage,
            events=tuple(self.trail.events),
            token=self._token,
        )

    def break_off(self, error: str) -> None:
        """Prepare the records of a call that ends here, apart from those that are written."""
        if self._ended or self._scribe is None or self._scribe.process != os.getpid():
            self._entries = []
            return
        if self._appending:  # interrupted: nobody knows what is durable, and twice would be wrong
            self._entries = []
            return
        with self.trail.lock:  # what is being added is there, and nothing is added any more
            if not self._intended:
                self._intend(self.trail.number(self._performance.messages), None)
            left = self._outlet.text if self._outlet is not None else ""
            self._result(
                Output(
                    text=left or None,
                    content=(Text(left),) if left else (),
                    check=self._pipeline.standing.check,
                    reason=self._pipeline.standing.reason,
                    error="the caller went away before the call ended",
                ),
                None,
                error,
            )


@contextmanager
def _unrecorded(call: Call) -> Iterator[None]:
    """Say that the end of a call that breaks off anyway could not be recorded."""
    try:
        yield
    except LogError as error:
        logger().warning("end_not_recorded", error=str(error))


def _ended_by(error: BaseException) -> str:
    """Return what stands in the record of a call that was broken off."""
    import sys

    asyncio = sys.modules.get("asyncio")
    if isinstance(error, Cancelled | KeyboardInterrupt | SystemExit) or (
        asyncio is not None and isinstance(error, asyncio.CancelledError)
    ):
        return "Cancelled"
    return type(error).__name__


def _usage(events: Sequence[Event]) -> Usage:
    usages = [event.generation.usage for event in events if type(event) is Generated]
    if not usages:
        return Usage(0, 0)
    if len(usages) == 1:
        return usages[0]
    return Usage(
        _sum([usage.input_tokens for usage in usages]), _sum([u.output_tokens for u in usages])
    )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
