"""Calls that wait for a person, and how they go on.

A call that ends with the verdict `AskHuman` gives its caller a token. With it the call is resumed,
once, by anybody who has it: approved, edited or rejected. Resuming is a call of its own that goes
on where the other stood: the stage is judged again, with its `AskHuman` waived, and what a person
put in is judged like anything else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import uuid
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from .asking import OnLoop
from .canonical import carriable, require_declared, sha256
from .decisions import Stood, edited
from .errors import InputError
from .generation import Backend, Request, Sampling
from .log import Log
from .performing import Performance, give_up
from .records import Entry, Resumption
from .requests import version_7
from .vocabulary import Call, Document, Message, Part, Stage

if TYPE_CHECKING:
    from .guard import Guard


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What a call left that waits for a person: all that it takes to go on.

    `token` is the digest of the token by which it is resumed.
    """

    call: Call
    token: str
    stage: Stage
    beside: bool = False
    stood: Stood
    request: Request
    sampling: Sampling


@runtime_checkable
class Resumable(Log, Protocol):
    """A log from which calls that wait can be resumed, after a restart too."""

    def left(self, call_id: str) -> Left | None:
        """Return what a call left that waits for a person; `None` where there is none."""
        ...

    def claim(self, entry: Entry) -> bool:
        """Make a call's first record durable, unless the call has one already.

        Of several claims, by whatever processes, one succeeds.
        """
        ...


class Memory:
    """Calls that wait, where no log keeps them: the newest `size`, each until it is resumed."""

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._left: dict[str, Left] = {}
        self._lock = threading.Lock()

    def keep(self, left: Left) -> None:
        """Keep what a call left."""
        with self._lock:
            self._left[left.call.id] = left
            while len(self._left) > self._size:
                del self._left[next(iter(self._left))]

    def left(self, call_id: str) -> Left | None:
        """Return what a call left."""
        with self._lock:
            return self._left.get(call_id)

    def take(self, call_id: str) -> bool:
        """Forget a call; return whether it was there."""
        with self._lock:
            return self._left.pop(call_id, None) is not None


def new_token(call_id: str) -> str:
    """Return a token that only its holder knows: 192 random bits behind the call's id."""
    return f"{call_id}.{os.urandom(24).hex()}"


def digest_of_token(token: str) -> str:
    """Return what a record may hold of a token."""
    return sha256(carriable(token).encode())


def resumed_id(token: str) -> str:
    """Return the id of the call that a token resumes: always the same, so that there is one.

    Its time is that of the call that waited.
    """
    drawn = hashlib.sha256(b"resumed\0" + carriable(token).encode()).digest()
    call_id = token.partition(".")[0]
    try:
        begun = uuid.UUID(call_id).int >> 80
    except ValueError:
        begun = 0
    return version_7(begun, drawn[:10])


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a person decided about a call that waits, as `Guard.resume` was given it."""

    token: str
    decision: Literal["approve", "edit", "reject"]
    edited: str | tuple[Part | Message | Document, ...] | None = None
    by: str | None = None
    reason: str = ""


def as_decision(token: Any, decision: Any, edited: Any, by: Any, reason: Any) -> Decision:
    """Return a decision as a record would give it back.

    Raises:
        InputError: something of it can't be used.
    """
    if decision not in ("approve", "edit", "reject"):
        raise InputError(f"a decision is approve, edit or reject, not {decision!r}.")
    if (edited is not None) != (decision == "edit"):
        raise InputError("pass edited=... with the decision 'edit', and with no other.")
    if isinstance(edited, Message | Document | Part):
        edited = (edited,)
    elif isinstance(edited, Iterable) and not isinstance(edited, str):
        edited = tuple(edited)
    taken = Decision(token=token, decision=decision, edited=edited, by=by, reason=reason)
    return require_declared(taken, Decision)


def going_on(left: Left | None, decision: Decision) -> tuple[Call, Resumption]:
    """Return the call that goes on with another, and with what.

    Raises:
        InputError: no call waits for this token, or the edit does not fit.
    """
    if left is None or not hmac.compare_digest(left.token, digest_of_token(decision.token)):
        raise unknown_token()
    resumption = Resumption(
        stage=left.stage,
        decision=decision.decision,
        by=decision.by,
        reason=decision.reason,
        candidate=left.stood.candidate,
        edited=decision.edited,
        beside=left.beside,
    )
    if decision.decision == "edit":
        try:
            edited(resumption, left.stood)
        except TypeError as error:
            raise InputError(f"what was edited does not fit at {left.stage}: {error}.") from None
    return msgspec.structs.replace(left.call, id=resumed_id(decision.token)), resumption


def begin(guard: Guard, decision: Decision, backend: Backend | None) -> tuple[Performance, Backend]:
    """Return the call that goes on with one that waits, by now the only one that does.

    Raises:
        InputError: no call waits for this token, or the decision does not fit.
        LogError: the log can't be read, or written.
    """
    call_id = decision.token.partition(".")[0]
    log = guard.log if isinstance(guard.log, Resumable) else None
    memory = guard._waiting or Memory()
    left = log.left(call_id) if log is not None else memory.left(call_id)
    call, resumption = going_on(left, decision)
    assert left is not None  # going_on looked
    answers = backend or guard.backend
    performed = Performance(
        call=call,
        messages=left.stood.messages,
        documents=left.stood.documents,
        request=left.request,
        sampling=left.sampling,
        world=guard._live(answers, guard._secrets, guard.backends),
        resumes=call_id,
        resumption=resumption,
    )
    if log is None:
        claimed = memory.take(call_id)
    else:
        scribe = guard._scribe(call, answers)
        assert scribe is not None
        claimed = log.claim(scribe.claim())
    if not claimed:
        raise unknown_token()
    return performed, answers


async def abegin(
    guard: Guard, decision: Decision, backend: Backend | None
) -> tuple[Performance, Backend]:
    """Like `begin`, without blocking the loop. Who is cancelled leaves a call that has ended."""
    import asyncio

    begun: list[tuple[Performance, Backend]] = []
    try:
        await OnLoop().run(lambda: begun.append(begin(guard, decision, backend)), guard._workers)
    except asyncio.CancelledError:
        for performed, answers in begun:
            scribe = guard._scribe(performed.call, answers)
            ended = partial(
                give_up, performed, policy=guard.policy, workers=guard._workers, scribe=scribe
            )
            await OnLoop().run(ended, guard._workers)
        raise
    return begun[0]


def unknown_token() -> InputError:
    """Return the error of a token that resumes nothing, without saying why it does not."""
    return InputError(
        "no call waits for this token: it is unknown, was used already, or what it belongs to was "
        "erased. A token resumes its call once."
    )
