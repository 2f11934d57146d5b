"""What lies outside a call: the real world, and the shape that every other must have.

A call reaches the world through its `Trail` only. `Live` takes effects and asks the backend. Replay
puts another world in its place that hands back what was recorded (`isonomy.replay.playback`), and
runs the same pipeline on it, so that live and replayed calls can't follow different code.
"""

from __future__ import annotations

import builtins
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from .canonical import carriable, require_declared
from .errors import BackendError, InputError, IsonomyError, PluginError
from .events import Effect, Event, Generated, Scored
from .generation import Backend, Generation, Identity, Request, Scorer
from .vocabulary import Message

OnText = Callable[[str], None] | None
"""Receives pieces of an answer's text as they become final."""


class Asker(NamedTuple):
    """Who asks the model: a check's hook in its round, or (no check) the call itself.

    `backend` names which of the guard's further backends; `None` is the call's own.
    """

    stage: str
    check: str | None
    round: int
    backend: str | None = None


class World(Protocol):
    """What lies outside a call.

    `recorded` says that it is a recorded one, which takes one question at a time, in order.
    """

    recorded: bool

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Return `event` with the value or error that the world gave."""
        ...

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Like `take`, for an async effect."""
        ...

    def secret(self, name: str) -> str:
        """Return a secret."""
        ...

    def generate(self, request: Request, asker: Asker, on_text: OnText = None) -> Generation:
        """Answer a request; `on_text` gets pieces of its text as they come, from any thread."""
        ...

    async def agenerate(self, request: Request, asker: Asker, on_text: OnText = None) -> Generation:
        """Like `generate`, without blocking the loop."""
        ...

    def logprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker
    ) -> tuple[float, ...] | None:
        """Return the log-probability of each label, or `None` where the backend can't tell."""
        ...

    async def alogprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker
    ) -> tuple[float, ...] | None:
        """Like `logprobs`, without blocking the loop."""
        ...

    def patience(self, timeout: float) -> float:
        """Return how many seconds to wait for a check that may take `timeout`."""
        ...

    def foretold(self, *, stage: str, check: str, target: str, round: int) -> tuple[Event, ...]:
        """Return what must be handed back instead of asking the check.

        A recorded timeout (`Failed`), after what the check took from the world until then.
        """
        ...

    def said(self, event: Generated | Scored) -> tuple[Message, ...]:
        """Return the messages that a foretold generation answered."""
        ...


class Live:
    """The real world.

    Args:
        backend: answers the call.
        secrets: where `ctx.secret` looks.
        backends: the guard's further backends, by name.
    """

    recorded = False

    def __init__(
        self,
        backend: Backend,
        secrets: Callable[[str], str | None] | None = None,
        backends: Mapping[str, Backend] | None = None,
    ) -> None:
        self._backend = backend
        self._secrets = secrets
        self._backends = backends or {}

    def identity(self) -> Identity:
        """Return who answers the call."""
        return self._backend.identity()

    def _answering(self, asker: Asker | None) -> Backend:
        if asker is None or asker.backend is None:
            return self._backend
        backend = self._backends.get(asker.backend)
        if backend is None:
            known = ", ".join(sorted(self._backends)) or "none"
            raise PluginError(
                f"the guard has no further backend named {asker.backend!r} (it has: {known}). Give "
                "it one: Guard(backends={...}), or a table [backends.NAME] of its file.",
                plugin=asker.check or asker.stage,
            )
        return backend

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Do the effect, and note its value or error and how long it took."""
        started = time.perf_counter_ns()
        try:
            value, error = produce(), None
        except BaseException as raised:  # sys.exit too: a replay must take the same way
            value, error = None, (type(raised).__name__, said_by(raised))
        return _timed(event, value, error, started)

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Do an async effect."""
        started = time.perf_counter_ns()
        try:
            value, error = await produce(), None
        except BaseException as raised:
            if ends_the_task(raised):
                raise
            value, error = None, (type(raised).__name__, said_by(raised))
        return _timed(event, value, error, started)

    def secret(self, name: str) -> str:
        """Return a secret from the guard's source."""
        value = self._secrets(name) if self._secrets is not None else None
        if value is None:
            raise PluginError(
                f"no secret named {name!r}: give the guard a source, Guard(secrets=...).",
                plugin=name,
            )
        if not isinstance(value, str):
            raise PluginError(
                f"the secret {name!r} is of type {type(value).__name__}: the guard's source must "
                "return text (a str), or None where there is no such secret.",
                plugin=name,
            )
        return value

    def generate(
        self,
        request: Request,
        asker: Asker | None = None,
        on_text: OnText = None,
        *,
        recorded: Generation | None = None,
    ) -> Generation:
        """Ask the backend; whatever it raises becomes a `BackendError`.

        `recorded` is for a backend that verifies (`isonomy.sdk.generation.Verifier`).
        """
        backend = self._answering(asker)
        ask: Any = backend.generate
        more: dict[str, Any] = {} if on_text is None else {"on_text": on_text}
        if recorded is not None:
            more["recorded"] = recorded
        try:
            return _usable(ask(request, **more), backend)
        except (IsonomyError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _wrapped(error, backend) from error

    async def agenerate(
        self, request: Request, asker: Asker | None = None, on_text: OnText = None
    ) -> Generation:
        """Ask the backend without blocking the loop."""
        backend = self._answering(asker)
        more: dict[str, Any] = {} if on_text is None else {"on_text": on_text}
        try:
            return _usable(await backend.agenerate(request, **more), backend)
        except (IsonomyError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if ends_the_task(error):
                raise
            raise _wrapped(error, backend) from error

    def logprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker | None = None
    ) -> tuple[float, ...] | None:
        """Ask the backend; whatever keeps it from telling, it can't tell."""
        backend = self._answering(asker)
        if not isinstance(backend, Scorer):
            return None
        try:
            return _scores(backend.logprobs(request, labels), labels)
        except KeyboardInterrupt:
            raise
        except BaseException:  # its generations will say what is wrong with it, if anything is
            return None

    async def alogprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker | None = None
    ) -> tuple[float, ...] | None:
        """Ask the backend on a thread."""
        import asyncio

        return await asyncio.to_thread(self.logprobs, request, labels, asker)

    def patience(self, timeout: float) -> float:
        """Return `timeout`."""
        return timeout

    def foretold(self, *, stage: str, check: str, target: str, round: int) -> tuple[Event, ...]:
        """Return nothing: the future is open."""
        return ()

    def said(self, event: Generated | Scored) -> tuple[Message, ...]:
        """Return nothing: nothing is foretold."""
        return ()


def said_by(error: BaseException) -> str:
    """Return an error's message as text that can be recorded; empty where it has none."""
    try:
        return carriable(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # third-party code
        return ""


def ends_the_task(error: BaseException) -> bool:
    """Return whether an error ends the coroutine that it is raised in, not what it awaits."""
    if isinstance(error, GeneratorExit):
        return True
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _wrapped(error: BaseException, backend: Backend) -> BackendError:
    return BackendError(
        f"the backend raised {type(error).__name__}: {said_by(error)}",
        backend=backend.identity().spec,
    )


def _usable(generation: Any, backend: Backend) -> Generation:
    """Return what a backend gave if checks can judge it and the log can hold it."""
    try:
        if not isinstance(generation, Generation):
            raise InputError(f"it returned {type(generation).__name__}, not a Generation.")
        # As it reads back from the record, so that a live call and its replay see the same.
        return require_declared(generation, Generation)
    except InputError as error:
        raise BackendError(
            f"the backend's answer can't be used: {error}", backend=backend.identity().spec
        ) from None


def _scores(found: Any, labels: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return log-probabilities if there is a number for each label that a record can hold."""
    scores = tuple(float(score) for score in found)
    if len(scores) != len(labels) or not all(math.isfinite(score) for score in scores):
        return None
    return scores


def _timed(event: Effect, value: Any, error: tuple[str, str] | None, started: int) -> Effect:
    return msgspec.structs.replace(
        event, value=value, error=error, duration_ns=time.perf_counter_ns() - started
    )


class ReplayedError(Exception):
    """What an effect that raised when it was recorded raises on replay.

    Same type name and message. Where the class of that name is known to the process (a builtin, or
    one class among those loaded), it is an instance of that class too, so that a check's
    ``except TimeoutError`` takes the same way again; nothing is imported to find it. Attributes
    beyond the message were not recorded.
    """

    type_name: str
    message: str

    @classmethod
    def of(cls, type_name: str, message: str) -> BaseException:
        """Return the recorded error, as its own class where that can be told.

        What is no `Exception` (`SystemExit`) is of its own class alone: ``except Exception`` must
        not take it.
        """
        kind = _class_named(type_name)
        if kind is not None and not issubclass(kind, Exception):
            other = kind.__new__(kind, message)
            other.args = (message,)
            return other
        error = cls.__new__(cls)
        if kind is not None:
            with suppress(TypeError):  # a class that can't be combined
                twin: Any = type(type_name, (cls, kind), {})
                error = twin.__new__(twin)
        error.type_name, error.message = type_name, message
        error.args = (message,)
        return error

    def __str__(self) -> str:
        return self.message


def _class_named(name: str) -> type[BaseException] | None:
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, BaseException):
        return known
    found: set[type[BaseException]] = set()
    left: list[type[BaseException]] = [BaseException]
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            if kind.__name__ == name and not issubclass(kind, ReplayedError):
                found.add(kind)
    return found.pop() if len(found) == 1 else None
