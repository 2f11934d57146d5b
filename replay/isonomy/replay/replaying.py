"""Replaying a recorded call: perform it again in the recorded world, and compare every event.

What is needed and not there makes the replay refuse, and say what is missing: an unfinished call, a
damaged record, a model that is gone or is another one, a check whose code or settings changed, a
check that only the application can provide. A replay never goes live quietly, and it never papers
over a difference.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from isonomy.sdk import Backend, IsonomyError, MissingExtra, ReplayError, Reply, Request
from isonomy.sdk.asking import Blocking, drive
from isonomy.sdk.canonical import canonical
from isonomy.sdk.config import open_backend
from isonomy.sdk.errors import Cancelled
from isonomy.sdk.events import (
    BackendFailed,
    Effect,
    Event,
    Failed,
    Generated,
    Judged,
    Revised,
    Scored,
)
from isonomy.sdk.generation import Identity
from isonomy.sdk.performing import Performance, perform
from isonomy.sdk.policy import Policy
from isonomy.sdk.records import CheckIdentity, Intent, Output, Result
from isonomy.sdk.trail import Trail
from isonomy.sdk.vocabulary import Call, Replace
from isonomy.sdk.workers import Workers

from .comparison import Difference, first_difference
from .deep import Depth, differing_layers, look
from .playback import Playback
from .stored import StoredCall

if TYPE_CHECKING:
    from isonomy.sdk import Guard

Status = Literal["verified", "diverged", "refused"]
Mode = Literal["in one pass", "token by token"]
EXIT_STATUS: dict[Status, int] = {"verified": 0, "diverged": 1, "refused": 2}


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay came to.

    `events` were compared, among them `generations`, of which `reexecuted` were computed anew, bit
    for bit, over `steps` token steps, in the way that `mode` names; `stand_ins` are the recorded
    answers and failures that stood in for a model that can't be asked again. `difference` is the
    first difference of a diverged replay, `reason` why a replay was refused or stopped, `deep` what
    a deep replay found.
    """

    call_id: str
    status: Status
    events: int = 0
    generations: int = 0
    reexecuted: int = 0
    stand_ins: int = 0
    steps: int = 0
    mode: Mode | None = None
    difference: Difference | None = None
    reason: str | None = None
    deep: Depth | None = None

    @property
    def exit_status(self) -> int:
        """0 verified, 1 diverged, 2 refused."""
        return EXIT_STATUS[self.status]

    def sentence(self) -> str:
        """Return the result in one line."""
        if self.status == "refused":
            return f"refused: {self.reason}"
        told = self._diverged() if self.status == "diverged" else self._verified()
        return told if self.deep is None else f"{told}; {self.deep.sentence()}"

    def _diverged(self) -> str:
        found = self.difference.sentence() if self.difference else self.reason
        how = f" (re-executed {self.mode})" if self.mode else ""
        return f"diverged: {found}{how}"

    def _verified(self) -> str:
        told = f"verified: {_plural(self.events, 'event')} equal"
        if self.mode:
            told += f"; {_plural(self.reexecuted, 'generation')} re-executed {self.mode}"
            told += f", {_plural(self.steps, 'token step')} bit for bit"
        if self.stand_ins:
            answers = self.generations - self.reexecuted
            counted = ((answers, "recorded answer"), (self.stand_ins - answers, "recorded failure"))
            said = " and ".join(_plural(count, noun) for count, noun in counted if count)
            told += f"; {said} stood in for the model, which can't be asked again"
        return told


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class _How(NamedTuple):
    regenerate: bool
    deep: bool


class Refusal(Exception):
    """Something that the replay needs is not there."""


def replay_call(
    stored: StoredCall,
    *,
    plugins: Collection[str] = (),
    guard: Guard | None = None,
    regenerate: bool = False,
    deep: bool = False,
) -> Replayed:
    """Replay a stored call in this process.

    A deterministic backend that can (`isonomy.sdk.generation.Verifier`) computes an answer in one
    pass over the recorded tokens. The result is that of `regenerate`, many times sooner.

    Args:
        stored: the call as read from a log.
        plugins: modules whose checks and backends may be imported, besides Isonomy's own.
        guard: whose policy and backend to use, callables included, instead of building them from
            the record.
        regenerate: have the model answer token by token instead.
        deep: look below the first differing token step for the first differing layer; see `deep`.
    """
    how = _How(regenerate, deep)
    try:
        intent, result = _complete(stored)
        policy = guard.policy if guard is not None else _policy_of(stored, plugins)
        _require_same_checks(intent, policy)
        with _models(stored, intent, plugins, guard) as models:
            return _perform(stored, intent, result, policy, models, how)
    except Refusal as refusal:
        return Replayed(call_id=stored.call_id, status="refused", reason=str(refusal))


Models = dict[str | None, Backend]
"""Deterministic models that answer anew: the call's own (`None`), and further ones by name."""


@contextmanager
def _models(
    stored: StoredCall, intent: Intent, plugins: Collection[str], guard: Guard | None
) -> Iterator[Models]:
    """Give the deterministic models that answered in a call.

    Raises:
        Refusal: one is gone, or is another one.
    """
    asked = {
        event.backend
        for event in stored.events
        if isinstance(event, Generated | BackendFailed | Scored)
    }
    recorded: dict[str | None, Identity] = {None: intent.identity}
    recorded.update(intent.backends)
    found: Models = {}
    opened: list[Backend] = []
    try:
        for name in sorted(asked, key=str):
            identity = recorded.get(name)
            if identity is None or not identity.deterministic:
                continue
            if guard is None:
                opened.append(_backend_of(identity, plugins, _formed(stored)))
                found[name] = opened[-1]
                continue
            present = guard.backend if name is None else guard.backends.get(name)
            if present is None:
                raise Refusal(f"this guard has no backend named {name!r}, which a check asked.")
            _require_same_model(identity, present.identity(), _formed(stored))
            found[name] = present
        yield found
    finally:
        for backend in opened:
            backend.close()


def _complete(stored: StoredCall) -> tuple[Intent, Result]:
    if stored.damage:
        raise Refusal(
            f"the record is damaged: {stored.damage[0]}. Run isonomy verify for the whole list."
        )
    intent, result = stored.intent, stored.result
    if intent is None:
        raise Refusal("the call has no intent record; it ended before the model was asked.")
    if result is None:
        raise Refusal(
            "the call has no result record; its process ended in the middle. There is nothing to "
            "compare with."
        )
    if result.error == Cancelled.__name__:
        raise Refusal(
            "the call's caller went away before it ended, and when can't be repeated. What had "
            "happened and left until then is in its record."
        )
    for record in (intent, result):
        for place in record.masked or ():
            raise Refusal(
                f"the log was told to mask {place.payload}{place.pointer} of this call, so what "
                "was asked and answered can't be restored. A call that must stay replayable has "
                "its content replaced by a check instead."
            )
    for stored_record in stored.records:
        if stored_record.erased:
            raise Refusal(
                f"its content was erased: the payload {stored_record.erased[0]!r} of record "
                f"{stored_record.sequence}. Who did it, and why, is in the view tombstones."
            )
    missing = [(r.sequence, name) for r in stored.records for name in r.missing]
    if missing:
        raise Refusal(f"the payload {missing[0][1]!r} of record {missing[0][0]} is gone.")
    try:
        readable = stored.request is not None and stored.policy is not None
        taken = {e.name for e in stored.events if isinstance(e, Effect) and e.kind == "secret"}
        masked = _masked(stored, taken)
        readable = readable and stored.output is not None
    except (msgspec.MsgspecError, ValueError) as error:
        raise Refusal(
            f"the record can't be read: {error}. Use the version of Isonomy that is named in it, "
            f"{intent.versions.get('isonomy', '?')}."
        ) from error
    if not readable:
        raise Refusal("the call's request, policy or output is not in its record.")
    if masked:
        raise Refusal(
            f"the record holds {masked} in place of a secret that reached the model or came from "
            "it, so what the checks and the model saw can't be restored. Use secrets in effects "
            "only, if a call must stay replayable."
        )
    if (lost := _lost_message(stored)) is not None:
        raise Refusal(
            f"message {lost} of the call is not in its record: it was erased in the log that the "
            "call was imported from."
        )
    return intent, result


def _lost_message(stored: StoredCall) -> int | None:
    """Return the number of a message that the call names and its record does not hold."""
    known = stored.messages.keys()
    request = stored.request
    named = list(request.messages) if request is not None else []
    for event in stored.events:
        if isinstance(event, Generated | Scored):
            named += event.messages
    return next((number for number in named if number not in known), None)


def _masked(stored: StoredCall, secrets: Collection[str]) -> str | None:
    """Return the placeholder of a secret that stands in what checks and model saw, if any does."""
    said = [message.text for message in stored.messages.values()]
    for event in stored.events:
        if isinstance(event, Generated):
            said += [event.generation.text, event.generation.prompt or ""]
        if isinstance(event, Judged) and isinstance(event.verdict, Replace):
            said.append(canonical(event.verdict.content).decode())
        if isinstance(event, Revised):
            said.append(event.text)
    for name in sorted(secrets):
        placeholder = f"[secret {name}]"
        if any(placeholder in text for text in said):
            return placeholder
    return None


def _policy_of(stored: StoredCall, plugins: Collection[str]) -> Policy:
    """Build the recorded policy from names alone, importing only what is allowed."""
    assert stored.intent is not None
    own = [check.id for check in stored.intent.checks if check.kind == "callable"]
    if own:
        raise Refusal(
            f"the check {own[0]!r} is code of the application, which can't be found by name. "
            "Replay the call where it lives: guard.replay(call_id)."
        )
    assert stored.policy is not None  # _complete looked
    table: dict[str, Any] = msgspec.json.decode(stored.policy)
    wanted = [name for name in table.get("plugins", ()) if name not in plugins]
    if wanted:
        raise Refusal(
            f"the policy loads the plugin module {wanted[0]!r}, and a log may not decide what is "
            f"imported. If you trust it, pass --plugins {wanted[0]}."
        )
    try:
        return Policy.from_table(table, trusted=plugins)
    except MissingExtra as error:
        raise Refusal(str(error)) from error
    except IsonomyError as error:
        raise Refusal(f"the recorded policy can't be built here: {error}") from error


def _require_same_checks(intent: Intent, policy: Policy) -> None:
    if len(intent.checks) != len(policy.identities):
        raise Refusal(
            f"the call was judged by {len(intent.checks)} checks, and this policy has "
            f"{len(policy.identities)}. Replay with the policy of the call."
        )
    for recorded, present in zip(intent.checks, policy.identities, strict=True):
        changed = _changed(recorded, present)
        if changed:
            raise Refusal(
                f"the check {recorded.id!r} is not the one that judged: its {changed} differs "
                f"(recorded {getattr(recorded, changed)!r}, here {getattr(present, changed)!r}). "
                "Install the version that is named in the record."
            )
    if policy.digest != intent.policy_digest:
        raise Refusal(
            f"this policy is not the recorded one: its digest is {policy.digest}, recorded "
            f"{intent.policy_digest}. Replay with the policy of the call."
        )


def _changed(recorded: CheckIdentity, present: CheckIdentity) -> str | None:
    for name in ("id", "use", "stages", "order", "settings", "code"):
        if getattr(recorded, name) != getattr(present, name):
            return name
    return None


def _formed(stored: StoredCall) -> bool:
    """Return whether the call, or a check in it, asked for the form of an answer."""
    if stored.request is not None and stored.request.response_format is not None:
        return True
    return any(isinstance(e, Generated) and e.response_format is not None for e in stored.events)


def _backend_of(identity: Identity, plugins: Collection[str], formed: bool) -> Backend:
    from isonomy.sdk.registry import Registry

    try:
        registry = Registry(plugins, trusted=plugins)
        backend = open_backend(identity.spec, registry, **identity.options)
    except IsonomyError as error:
        raise Refusal(f"the model {identity.spec!r} can't be opened: {error}") from error
    try:
        _require_same_model(identity, backend.identity(), formed)
    except Refusal:
        backend.close()
        raise
    return backend


def _require_same_model(recorded: Identity, present: Identity, formed: bool) -> None:
    if not present.deterministic:
        raise Refusal(
            f"the model {recorded.spec!r} was deterministic, and {present.spec!r} is not: it can't "
            "be asked again for the same bits. Replay with the recorded model."
        )
    for name in sorted({*recorded.artefacts, *present.artefacts}):
        old, new = recorded.artefacts.get(name), present.artefacts.get(name)
        if old != new:
            raise Refusal(
                f"the model {recorded.spec!r} is not the recorded one: the digest of its {name} is "
                f"{new}, recorded {old}. Restore the recorded model."
            )
    # What makes the masks of formed answers has no part in others.
    for name in sorted(
        {*recorded.numerics, *present.numerics} - (set() if formed else {"grammar"})
    ):
        old, new = recorded.numerics.get(name), present.numerics.get(name)
        if old != new:
            raise Refusal(
                f"the numerics differ: {name} is {new!r}, recorded {old!r}. Use the version of "
                "Isonomy that is named in the record."
            )


def _perform(
    stored: StoredCall,
    intent: Intent,
    result: Result,
    policy: Policy,
    models: Models,
    how: _How,
) -> Replayed:
    """Perform the call in the recorded world and compare."""
    request, events, table = stored.request, stored.events, stored.messages
    assert request is not None
    backend = models.get(None)
    further = {name: model for name, model in models.items() if name is not None}
    world = Playback(events, table, backend, further, regenerate=how.regenerate)
    trails: list[Trail] = []
    workers = Workers()
    messages = tuple(table[number] for number in request.messages)
    reply: Reply | None = None
    error: str | None = None
    try:
        performance = Performance(
            call=Call(
                id=intent.call_id,
                session=intent.session,
                subject=intent.subject,
                actor=intent.actor,
                trace_id=intent.trace_id,
                parent_id=intent.parent_id,
                tags=intent.tags,
            ),
            messages=messages,
            documents=request.documents,
            request=Request(
                messages=messages,
                tools=request.tools,
                response_format=request.response_format,
                extra=request.extra,
            ),
            sampling=intent.sampling,
            world=world,
            resumes=intent.resumes,
            resumption=request.resumption,
            stalled=result.stalled,
        )
        again = _streamed if intent.operation == "stream" else _whole
        reply = again(performance, policy=policy, workers=workers, trail_out=trails)
    except IsonomyError as raised:
        error = type(raised).__name__
    finally:
        workers.close()
    (trail,) = trails
    if world.stopped is not None:
        difference = _difference_before_the_stop(events, trail.events)
    else:
        difference = (
            first_difference(events, trail.events)
            or _differing_messages(stored, trail)
            or _differing_result(result, stored.output, reply, error)
        )
    same = difference is None and world.stopped is None
    depth: Depth | None = None
    if how.deep:
        depth = look(events, trail.events, difference, backend, same=same)
        difference = difference or differing_layers(events, depth)
    return Replayed(
        call_id=stored.call_id,
        status="verified" if same and difference is None else "diverged",
        difference=difference,
        reason=str(world.stopped) if world.stopped is not None else None,
        mode=_mode(trail.events, models, how),
        deep=depth,
        **_count(trail.events, models),
    )


def _whole(performance: Performance, **settings: Any) -> Reply:
    """Perform a call that was not streamed."""
    return drive(perform(performance, waiting=Blocking(), **settings))


def _streamed(performance: Performance, **settings: Any) -> Reply:
    """Perform a streamed call. How its answer was cut must not matter, and is not recorded."""
    from isonomy.sdk.releasing import Outlet, Streaming
    from isonomy.sdk.streams import Driver, Stream

    streaming = Streaming(Blocking(), Outlet())

    def begin() -> Coroutine[Any, Any, Reply]:
        return perform(performance, waiting=streaming, streaming=streaming, **settings)

    stream = Stream(Driver(performance.call.id, streaming.outlet, begin))
    for _ in stream:
        pass
    return stream.reply


def _mode(replayed: Sequence[Event], models: Models, how: _How) -> Mode | None:
    """Return how answers were computed; `None` where none were."""
    anew = [models[e.backend] for e in replayed if isinstance(e, Generated) and e.backend in models]
    if not anew:
        return None
    verified = not how.regenerate and all(getattr(each, "verifies", False) for each in anew)
    return "in one pass" if verified else "token by token"


def _count(replayed: Sequence[Event], models: Models) -> dict[str, Any]:
    generated = [event for event in replayed if isinstance(event, Generated)]
    anew = [event for event in generated if event.backend in models]
    failed = [event for event in replayed if isinstance(event, BackendFailed)]
    traces = [event.generation.tokens for event in anew]
    return {
        "events": len(replayed),
        "generations": len(generated),
        "reexecuted": len(anew),
        "stand_ins": len(generated)
        - len(anew)
        + sum(event.backend not in models for event in failed),
        "steps": sum(len(trace.ids) for trace in traces if trace),
    }


def _difference_before_the_stop(
    recorded: Sequence[Event], replayed: Sequence[Event]
) -> Difference | None:
    """Return the difference that led to the stop, where an earlier event shows it."""
    stop = ReplayError.__name__
    before = list(
        takewhile(
            lambda e: not (isinstance(e, Failed | BackendFailed) and e.error == stop), replayed
        )
    )
    shared = min(len(before), len(recorded))
    return first_difference(recorded[:shared], before[:shared])


def _differing_messages(stored: StoredCall, trail: Trail) -> Difference | None:
    bodies = {
        int(name.removeprefix("message/")): body
        for record in stored.records
        for name, body in record.payloads.items()
        if name.startswith("message/")
    }
    for number in range(max(len(bodies), len(trail.messages))):
        old = bodies.get(number)
        new = trail.messages[number] if number < len(trail.messages) else None
        if old != new:
            return _outside("messages", f"message/{number}", _text(old), _text(new))
    return None


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode()


def _differing_result(
    result: Result, recorded: Output | None, reply: Reply | None, error: str | None
) -> Difference | None:
    if result.error != error:
        return _outside("result", "error", result.error, error)
    if reply is None:
        return None
    for name in ("verdict", "finish_reason", "usage"):
        old, new = getattr(result, name), getattr(reply, name)
        if old != new:
            return _outside("result", name, msgspec.to_builtins(old), msgspec.to_builtins(new))
    if recorded != reply.output:
        return _outside(
            "result", "output", msgspec.to_builtins(recorded), msgspec.to_builtins(reply.output)
        )
    return None


def _outside(type: str, where: str, recorded: Any, replayed: Any) -> Difference:
    return Difference(
        event=None,
        type=type,
        stage="",
        check=None,
        where=where,
        recorded=recorded,
        replayed=replayed,
    )


def replay_with_guard(
    guard: Guard, call_id: str, *, regenerate: bool = False, deep: bool = False
) -> Replayed:
    """Replay a call of the guard's own log with the guard's own policy and backend."""
    from .reading import ReplayLog

    if guard.log is None:
        raise IsonomyError("this guard has no log, so there is nothing to replay. Pass log=DIR.")
    with ReplayLog(guard.log.path) as log:
        return replay_call(log.call(call_id), guard=guard, regenerate=regenerate, deep=deep)
