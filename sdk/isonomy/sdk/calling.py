"""What a call may be given besides its messages: the keywords of every way of calling.

`Guard.chat`, `achat`, `stream` and `astream` take the same ones, and so does everything that stands
before them (wrapped clients, the gateway). `performance` turns them into what is performed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypedDict

import msgspec

from .errors import InputError
from .generation import Backend, Generation, Identity, Request, Sampling
from .performing import Performance
from .requests import (
    as_call,
    as_documents,
    as_extra,
    as_messages,
    as_response_format,
    as_tools,
    checked,
    merged,
    new_call_id,
)
from .vocabulary import Call, Document, Message
from .world import Live, World

_NOT_GIVEN = (None, "")
Messages = str | Sequence[Message | dict[str, Any]]
"""A string (one user message), `Message`s, or dictionaries with the keys ``role``, ``content``."""


class CallOptions(TypedDict, total=False):
    """The keywords of a call.

    session: groups calls; made up unless given.
    actor: who asks.
    subject: whose data this is; the session unless given. Session, actor, subject and tags stand in
        the record itself, which outlives the erasure of content: use opaque ids, not names or
        addresses.
    tags: labels for the log.
    trace_id, parent_id: of a W3C trace that the call belongs to, hexadecimal; unless given, of the
        caller's current OpenTelemetry span, if there is one.
    documents: retrieved documents; they pass the `retrieved` checks and reach the model before what
        the user asked last.
    sampling: for this call; fields that are `None` are taken from the guard's own.
    tools: what the model may call, in the chat-completions format.
    response_format: what form the model's answer must have, such as ``{"type": "json_schema",
        "json_schema": {"schema": {...}}}``; recorded, and forced by backends that can. Which forms
        there are is the backend's to say. Candidates and later rounds have it too; answers that a
        check replaces, and refusals, need not.
    extra: parameters of the provider's own; see `isonomy.sdk.Request`.
    backend: answers this call instead of the guard's own; it is not closed.
    """

    session: str | None
    actor: str | None
    subject: str | None
    tags: dict[str, str] | None
    trace_id: str | None
    parent_id: str | None
    documents: Sequence[Document]
    sampling: Sampling | None
    tools: Sequence[dict[str, Any]]
    response_format: dict[str, Any] | None
    extra: dict[str, Any] | None
    backend: Backend | None


class NoBackend:
    """Stands where a guard was given no backend: every call must bring its own."""

    def identity(self) -> Identity:
        """Return nobody."""
        return Identity(provider="none", model="none", spec="none")

    def resolve(self, sampling: Sampling) -> Sampling:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this guard has no backend of its own. Make it with Guard(backend=...), or wrap the "
            "client that shall answer: guard.wrap(client)."
        )

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Refuse, as `resolve`."""
        raise AssertionError(self.resolve(request.sampling))

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Refuse, as `resolve`."""
        return self.generate(request)

    def close(self) -> None:
        """Do nothing."""


def performance(
    messages: Messages,
    options: CallOptions,
    *,
    backend: Backend,
    sampling: Sampling,
    secrets: Callable[[str], str | None] | None,
    live: Callable[..., World] = Live,
    backends: Mapping[str, Backend] | None = None,
) -> Performance:
    """Return what a call is to do, live, from what its caller passed.

    Args:
        messages: as passed.
        options: as passed, apart from `backend`.
        backend: answers the call.
        sampling: the guard's own.
        secrets: where `ctx.secret` looks.
        live: makes the world; tests of checks have one of their own.
        backends: the guard's further ones, by name.

    Raises:
        InputError: something passed can't be used; nothing was recorded.
    """
    parsed = as_messages(messages)
    call_id = new_call_id()
    drawn = backend.resolve(_wanted(options, sampling))
    if drawn.seed is None:
        drawn = msgspec.structs.replace(drawn, seed=int.from_bytes(os.urandom(8), "big") >> 1)
    world = live(backend, secrets, backends)
    if not options and "opentelemetry.trace" not in sys.modules:  # a plain question
        return Performance(
            call=Call(id=call_id, session=call_id, subject=call_id),
            messages=parsed,
            request=Request(messages=parsed),
            sampling=drawn,
            world=world,
        )
    session, subject = options.get("session"), options.get("subject")
    tags = options.get("tags")
    trace_id, parent_id = _trace_of(options)
    call = as_call(
        id=call_id,
        session=call_id if session in _NOT_GIVEN else session,
        subject=subject if subject not in _NOT_GIVEN else session or call_id,
        actor=options.get("actor"),
        trace_id=trace_id,
        parent_id=parent_id,
        **({} if tags is None else {"tags": tags}),
    )
    return Performance(
        call=call,
        messages=parsed,
        documents=as_documents(options.get("documents", ())),
        request=Request(
            messages=parsed,
            tools=as_tools(options.get("tools", ())),
            response_format=as_response_format(options.get("response_format")),
            extra=as_extra(options.get("extra")),
        ),
        sampling=drawn,
        world=world,
    )


def _wanted(options: CallOptions, sampling: Sampling) -> Sampling:
    """Return the sampling that a call asks for; what it leaves open is the guard's own."""
    wanted = options.get("sampling")
    return sampling if wanted is None else merged(checked(wanted), sampling)


def _trace_of(options: CallOptions) -> tuple[str | None, str | None]:
    """Return the trace and the span that a call belongs to.

    Who traces has loaded OpenTelemetry; nobody else needs to pay for it.
    """
    given = options.get("trace_id"), options.get("parent_id")
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or given != (None, None):
        return given
    with suppress(Exception):  # a call does not fail for a trace
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            return f"{current.trace_id:032x}", f"{current.span_id:016x}"
    return given
