"""Calls of a log that wait for a person: what `Guard.resume` needs of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from isonomy.sdk import Request
from isonomy.sdk.decisions import Stood
from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Pending
from isonomy.sdk.resuming import Left
from isonomy.sdk.vocabulary import Call

from .errors import NoSuchCall

if TYPE_CHECKING:
    from .reading import ReplayLog


def left(log: ReplayLog, call_id: str) -> Left | None:
    """Return what a call left that waits for a person; `None` where it does not, or was erased.

    Raises:
        LogError: its record is damaged, or can't be read.
    """
    try:
        stored = log.call(call_id)
    except NoSuchCall:
        return None
    intent, result = stored.intent, stored.result
    if stored.call_id != call_id or intent is None or result is None or result.token is None:
        return None
    if stored.damage:
        raise LogError(
            f"the record of the call that waits is damaged: {stored.damage[0]}. Run isonomy verify "
            "for the whole list.",
            path=log.path,
        )
    if intent.masked or result.masked:
        raise LogError(
            "the call that waits was masked in its log, and can't go on with what is left of it. "
            "Let no mask apply to calls that wait for people.",
            path=log.path,
        )
    ended = stored.result_record
    assert ended is not None  # the result is in it
    try:
        pending, request = ended.decode("pending", Pending), stored.request
        messages = stored.messages
    except msgspec.MsgspecError as error:
        raise LogError(f"the call that waits can't be read: {error}.", path=log.path) from error
    if pending is None or request is None or not {*pending.messages} <= {*messages}:
        return None
    return Left(
        call=Call(
            id=intent.call_id,
            session=intent.session,
            subject=intent.subject,
            actor=intent.actor,
            trace_id=intent.trace_id,
            parent_id=intent.parent_id,
            tags=intent.tags,
        ),
        token=result.token,
        stage=pending.stage,
        beside=pending.beside,
        stood=Stood(
            tuple(messages[number] for number in pending.messages),
            pending.documents,
            pending.candidate,
        ),
        request=Request(
            messages=(),
            tools=request.tools,
            response_format=request.response_format,
            extra=request.extra,
        ),
        sampling=intent.sampling,
    )
