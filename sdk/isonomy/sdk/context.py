"""The plugin's door to the outside world: clock, randomness, secrets, effects, nested generation.

Everything that comes through a `Context` is recorded in sequence as an event, and handed back on
replay instead of being done again; a replay that asks for something the log does not have, or in
another order, stops with the check's name. So a plugin that reaches the world only through its
context is replayable by construction.

A context belongs to one invocation of one check. When the check has returned, or missed its
deadline, the context is closed: a straggling thread can't add events to a call that has moved on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .canonical import canonical
from .errors import InputError, PluginError
from .generation import Generation, Sampling
from .requests import as_messages, as_response_format
from .trail import Asked
from .vocabulary import Message

if TYPE_CHECKING:
    import random

    from .spending import Spent
    from .trail import Trail

T = TypeVar("T")
EffectKind = Literal["now", "rng", "effect", "secret"]
_DOING: ContextVar[Context | None] = ContextVar("doing", default=None)
"""Whose effect is being done."""


class Context:
    """What a hook is given as `ctx`."""

    def __init__(
        self, trail: Trail, *, stage: str, check: str, round: int, first: int | None = None
    ) -> None:
        """Open the door for one invocation.

        Args:
            trail: of the call.
            stage: where the check is asked.
            check: its id.
            round: of regeneration.
            first: from where nested generations are numbered; after the events so far, unless
                given.
        """
        self._trail = trail
        self._stage = stage
        self._check = check
        self._round = round
        self._rng: random.Random | None = None
        self._nested = 0
        self._first = len(trail.events) - trail.shadowed if first is None else first
        self._closed = False

    def close(self) -> None:
        """End this context; later use, and what is under way, raises `PluginError`."""
        with self._trail.lock:
            self._closed = True

    def _open(self) -> None:
        if self._closed:
            raise PluginError(
                f"check {self._check!r} used its context after it had returned or timed out. "
                "Use the context only inside the hook.",
                plugin=self._check,
            )
        if _DOING.get() is self:
            raise PluginError(
                f"check {self._check!r} used its context inside of an effect, which a replay does "
                "not do again. Ask for what the effect needs before it: key = ctx.secret(...).",
                plugin=self._check,
            )

    def _take(self, kind: EffectKind, name: str, produce: Callable[[], Any]) -> Any:
        self._open()
        return self._trail.take(
            kind,
            name,
            produce,
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )

    def now(self) -> datetime:
        """Return the current time (UTC), as recorded."""
        nanoseconds: int = self._take("now", "now", time.time_ns)
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)

    def spent(self) -> Spent:
        """Return what this check has had of models in this call so far, at every stage of it."""
        from .spending import spent  # few checks ask

        self._open()
        with self._trail.lock:
            return spent(self._trail.events, self._trail.messages, self._check)

    @property
    def rng(self) -> random.Random:
        """A random generator of this invocation; its seed is recorded."""
        if self._rng is None:
            import random  # few checks draw

            seed = self._take("rng", "rng", lambda: int.from_bytes(os.urandom(8), "big") >> 1)
            self._rng = random.Random(seed)
        return self._rng

    def secret(self, name: str) -> str:
        """Return a secret that the guard was given under `name`. Its value is never recorded.

        On replay there are no secrets: the placeholder ``[secret NAME]`` is returned, since what
        would use it (an effect) is handed back from the record.
        """
        self._open()
        return self._trail.secret(
            name, gate=self._open, stage=self._stage, check=self._check, round=self._round
        )

    def effect(self, name: str, function: Callable[[], T]) -> T:
        """Do something in the outside world and record what came back: plain JSON data.

        Plain are `None`, bools, ints, finite floats, text, lists, and dictionaries with text as
        keys: what a replay can hand back as it was. An exception of `function` is recorded too, and
        raised again on replay (see `isonomy.sdk.trail.ReplayedError`): catch it by its class, and
        rely on its message, not on further attributes.

        Raises:
            InputError: the name is no text, or the result is not plain data.
            PluginError: `function` uses this context.
        """

        def done() -> T:
            before = _DOING.get()
            _DOING.set(self)
            try:
                return function()
            finally:
                _DOING.set(before)

        result: T = self._take("effect", name, done)
        return result

    async def aeffect(self, name: str, function: Callable[[], Awaitable[T]]) -> T:
        """Like `effect`, for an async function."""

        async def done() -> T:
            before = _DOING.get()
            _DOING.set(self)
            try:
                return await function()
            finally:
                _DOING.set(before)

        self._open()
        result: T = await self._trail.atake(
            name,
            done,
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )
        return result

    def generate(
        self,
        messages: str | tuple[Message, ...],
        *,
        sampling: Sampling | None = None,
        response_format: dict[str, Any] | None = None,
        backend: str | None = None,
    ) -> Generation:
        """Ask a backend for an answer of the plugin's own (a judge, a rewrite).

        It is recorded in full. On replay a deterministic backend generates it again and the bits
        are compared; any other is answered from the record.

        Args:
            messages: a prompt, or messages.
            sampling: what it leaves open is the backend's own default, but the seed, which is the
                call's. Unless given: the call's, where its own backend is asked.
            response_format: what form the answer must have, as for `Guard.chat`.
            backend: the name of one of the guard's further backends; the call's own unless given.

        Raises:
            BackendError: it did not answer.
            PluginError: the guard has no backend of that name.
        """
        return self._trail.nested(
            _asked(messages, sampling, response_format, backend),
            number=self._next_nested(),
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )

    async def agenerate(
        self,
        messages: str | tuple[Message, ...],
        *,
        sampling: Sampling | None = None,
        response_format: dict[str, Any] | None = None,
        backend: str | None = None,
    ) -> Generation:
        """Like `generate`, from an async hook."""
        return await self._trail.anested(
            _asked(messages, sampling, response_format, backend),
            number=self._next_nested(),
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )

    def logprobs(
        self,
        messages: str | tuple[Message, ...],
        labels: Sequence[str],
        *,
        backend: str | None = None,
    ) -> tuple[float, ...] | None:
        """Ask a backend how likely it finds each of some answers.

        Recorded and replayed like `generate`.

        Args:
            messages: a prompt, or messages.
            labels: answers to compare, such as ``("yes", "no")``; none empty.
            backend: as for `generate`.

        Returns:
            The natural logarithm of each label's probability as the beginning of the answer, or
            `None` where the backend can't tell: ask it for text then.

        Raises:
            InputError: there is no label, or one is no text.
        """
        self._open()
        return self._trail.score(
            _asked(messages, None, None, backend),
            _labels(labels),
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )

    async def alogprobs(
        self,
        messages: str | tuple[Message, ...],
        labels: Sequence[str],
        *,
        backend: str | None = None,
    ) -> tuple[float, ...] | None:
        """Like `logprobs`, from an async hook."""
        self._open()
        return await self._trail.ascore(
            _asked(messages, None, None, backend),
            _labels(labels),
            gate=self._open,
            stage=self._stage,
            check=self._check,
            round=self._round,
        )

    def _next_nested(self) -> int:
        """Number a nested generation, the same on replay whatever a check that hung had begun."""
        self._open()
        with self._trail.lock:
            self._nested += 1
            return self._first + self._nested


def _asked(messages: Any, sampling: Sampling | None, response_format: Any, backend: Any) -> Asked:
    if backend is not None and not isinstance(backend, str):
        raise InputError(
            f"backend must be the name of one of the guard's backends, not "
            f"{type(backend).__name__}."
        )
    return Asked(as_messages(messages), sampling, as_response_format(response_format), backend)


def _labels(labels: Any) -> tuple[str, ...]:
    found = () if isinstance(labels, str | bytes) else tuple(labels)
    if not found or not all(isinstance(label, str) and label for label in found):
        raise InputError('labels must be non-empty texts to compare, such as ("yes", "no").')
    canonical(found)
    return found
