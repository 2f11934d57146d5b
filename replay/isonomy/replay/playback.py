"""The recorded world: hands back what a call took from outside, in the order in which it took it.

`Playback` is a `World` like `isonomy.sdk.trail.Live`, so that a replay runs the very pipeline of
the live call. Effects, secrets and the answers of remote models come from the record; a
deterministic backend, where one is given, answers anew, with the recorded tokens as guesses where
it can use them (`isonomy.sdk.generation.Verifier`). What is asked for in another order, or not in
the record at all, stops the replay with the check's name: it never goes live quietly.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from isonomy.sdk import (
    Backend,
    BackendError,
    Generation,
    IsonomyError,
    Message,
    ReplayError,
    Request,
    errors,
)
from isonomy.sdk.events import (
    BackendFailed,
    Critiqued,
    Effect,
    Event,
    Failed,
    Generated,
    Judged,
    Ranked,
    Revised,
    Scored,
)
from isonomy.sdk.world import Asker, Live


class Playback:
    """What a recorded call took from the world.

    Args:
        events: the call's recorded events, in sequence.
        messages: the call's message table, for the requests of checks that were cut short.
        backend: a deterministic backend that answers anew; `None` hands back recorded answers.
        backends: further deterministic backends that answer anew, by name.
        regenerate: have them answer token by token, even if they can verify.
    """

    recorded = True

    def __init__(
        self,
        events: Sequence[Event],
        messages: Mapping[int, Message] | None = None,
        backend: Backend | None = None,
        backends: Mapping[str, Backend] | None = None,
        *,
        regenerate: bool = False,
    ) -> None:
        self._regenerate = regenerate
        self._backends: dict[str | None, Backend] = {None: backend} if backend is not None else {}
        self._backends.update(backends or {})
        self._messages = messages or {}
        self._timeouts = _timeouts(events)
        cut_short = {event.sequence for part in self._timeouts.values() for event in part}
        rest = [event for event in events if event.sequence not in cut_short]
        self._effects = deque(event for event in rest if isinstance(event, Effect))
        self._answers = deque(
            event for event in rest if isinstance(event, Generated | BackendFailed | Scored)
        )
        self._asked: Counter[_Question] = Counter()
        self._lock = threading.Lock()
        self.stopped: ReplayError | None = None
        """The first thing asked for that the record does not have; nothing is given after it."""

    def _stop(self, message: str, check: str | None) -> ReplayError:
        self.stopped = ReplayError(message, check=check)
        return self.stopped

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Hand back the next recorded effect, which must be the one asked for."""
        with self._lock:
            if self.stopped is not None:
                raise self.stopped
            if not self._effects:
                raise self._stop(
                    f"check {event.check!r} asked for {_named(event)}, and the record holds no "
                    "further effect. The check behaves otherwise than when it was recorded.",
                    event.check,
                )
            recorded = self._effects[0]
            if _place(recorded) != _place(event):
                raise self._stop(
                    f"check {event.check!r} asked for {_named(event)} where the record has "
                    f"{_named(recorded)} of check {recorded.check!r} at {recorded.stage}. The "
                    "check behaves otherwise than when it was recorded.",
                    event.check,
                )
            return self._effects.popleft()

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Hand back the next recorded effect."""
        return self.take(event, lambda: None)

    def secret(self, name: str) -> str:
        """Return a placeholder: secrets are never recorded, and what would use one is not run."""
        return f"[secret {name}]"

    def generate(
        self, request: Request, asker: Asker, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer anew on a deterministic backend, else hand back the next recorded answer.

        Either way the record must have an answer for this asker next.
        """
        recorded = self._next(asker)
        backend = self._backends.get(asker.backend)
        if backend is not None:
            generation = self._anew(backend, request, recorded)
        elif isinstance(recorded, BackendFailed):
            raise _recorded_error(recorded)
        else:
            assert isinstance(recorded, Generated)
            generation = recorded.generation
        if on_text is not None and generation.text:
            on_text(generation.text)
        return generation

    def _next(self, asker: Asker, *, scores: bool = False) -> Generated | BackendFailed | Scored:
        """Return what the record has next of models, which must be for this asker."""
        with self._lock:
            if self.stopped is not None:
                raise self.stopped
            who = f"check {asker.check!r}" if asker.check else "the call"
            if not self._answers:
                raise self._stop(
                    f"{who} asked the model, and the record holds no further answer. The checks "
                    "behave otherwise than when it was recorded.",
                    asker.check,
                )
            recorded = self._answers[0]
            if _asker(recorded) != asker or isinstance(recorded, Scored) != scores:
                other = f"check {recorded.check!r}" if recorded.check else "the call"
                raise self._stop(
                    f"{who} asked {_model(asker.backend)} at {asker.stage} where the record has an "
                    f"answer of {_model(recorded.backend)} to {other} at {recorded.stage}. The "
                    "checks behave otherwise than when it was recorded.",
                    asker.check,
                )
            return self._answers.popleft()

    def _anew(
        self, backend: Backend, request: Request, recorded: Generated | BackendFailed | Scored
    ) -> Generation:
        live = Live(backend)
        if not getattr(backend, "verifies", False):
            return live.generate(request)
        answer = recorded.generation if isinstance(recorded, Generated) else _NO_ANSWER
        if self._regenerate:
            answer = msgspec.structs.replace(answer, tokens=None)
        return live.generate(request, recorded=answer)

    async def agenerate(
        self, request: Request, asker: Asker, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Like `generate`."""
        return self.generate(request, asker, on_text)

    def logprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker
    ) -> tuple[float, ...] | None:
        """Compute them anew on a deterministic backend, else hand back what is recorded."""
        recorded = self._next(asker, scores=True)
        assert isinstance(recorded, Scored)
        backend = self._backends.get(asker.backend)
        if backend is None:
            return recorded.logprobs
        return Live(backend).logprobs(request, labels)

    async def alogprobs(
        self, request: Request, labels: tuple[str, ...], asker: Asker
    ) -> tuple[float, ...] | None:
        """Like `logprobs`."""
        return self.logprobs(request, labels, asker)

    def patience(self, timeout: float) -> float:
        """Return how long to wait for a check: its answer was in time when it was recorded."""
        return max(timeout, PATIENCE)

    def foretold(self, *, stage: str, check: str, target: str, round: int) -> tuple[Event, ...]:
        """Return the recorded timeout of this question, after what the check did until then.

        The check is not asked again. What the model told it is generated anew where that is
        possible, like any other answer.
        """
        if self.stopped is not None:
            raise self.stopped
        question = _Question(stage, check, target, round)
        self._asked[question] += 1
        events = self._timeouts.get((question, self._asked[question]), ())
        return tuple(self._again(event) for event in events)

    def _again(self, event: Event) -> Event:
        if not isinstance(event, Generated | Scored) or event.backend not in self._backends:
            return event
        backend, said = self._backends[event.backend], self.said(event)
        if isinstance(event, Scored):
            found = Live(backend).logprobs(Request(messages=said), event.labels)
            return msgspec.structs.replace(event, logprobs=found)
        request = Request(
            messages=said, sampling=event.sampling, response_format=event.response_format
        )
        return msgspec.structs.replace(event, generation=self._anew(backend, request, event))

    def said(self, event: Generated | Scored) -> tuple[Message, ...]:
        """Return the messages of a recorded request."""
        return tuple(self._messages[number] for number in event.messages)


_NO_ANSWER = Generation(content=(), finish_reason="", model="")
PATIENCE = 600.0
"""Seconds for which a replay waits for a check at least: times are evidence, and not compared."""


class _Question(NamedTuple):
    stage: str
    check: str
    target: str
    round: int


def _named(effect: Effect) -> str:
    return effect.kind if effect.name == effect.kind else f"{effect.kind} {effect.name!r}"


def _model(backend: str | None) -> str:
    return "the model" if backend is None else f"the backend {backend!r}"


def _place(effect: Effect) -> tuple[str, str, str, str | None, int]:
    return effect.kind, effect.name, effect.stage, effect.check, effect.round


def _timeouts(events: Sequence[Event]) -> dict[tuple[_Question, int], tuple[Event, ...]]:
    """Return the recorded timeouts by question and how often it had been asked by then.

    Each comes after what its check had taken from the world by then: the events of the same check
    right before it.
    """
    asked: Counter[_Question] = Counter()
    found: dict[tuple[_Question, int], tuple[Event, ...]] = {}
    taken: list[Event] = []
    for event in events:
        if isinstance(event, Effect | Generated | BackendFailed | Scored):
            if taken and _asker(taken[-1])[:3] != _asker(event)[:3]:
                taken = []
            taken.append(event)
            continue
        if isinstance(event, Judged | Failed | Critiqued | Revised | Ranked) and event.check:
            target = "candidates" if isinstance(event, Ranked) else event.target
            question = _Question(event.stage, event.check, target, event.round)
            asked[question] += 1
            if isinstance(event, Failed) and event.kind == "timeout":
                before = taken if taken and _asker(taken[-1])[:3] == _asker(event)[:3] else []
                found[(question, asked[question])] = (*before, event)
        taken = []
    return found


def _asker(event: Event) -> Asker:
    return Asker(event.stage, event.check, event.round, getattr(event, "backend", None))


def _recorded_error(event: BackendFailed) -> IsonomyError:
    """Return an error of the recorded type and message; its other attributes were not recorded."""
    kind: type[IsonomyError] = getattr(errors, event.error, BackendError)
    if not (isinstance(kind, type) and issubclass(kind, IsonomyError)):
        kind = BackendError
    error = kind.__new__(kind)
    Exception.__init__(error, event.message)
    return error


def without_evidence(event: Event) -> dict[str, Any]:
    """Return an event as plain data without what must not matter: durations, attempts, runtime."""
    plain: dict[str, Any] = msgspec.to_builtins(event)
    plain.pop("duration_ns", None)
    plain.pop("attempts", None)  # of a failed backend
    generation = plain.get("generation")
    if generation is not None:
        for name in ("attempts", "runtime", "timings", "raw"):
            generation.pop(name)
        if generation["tokens"] is not None:
            # Taken only where it was asked for; a deep replay compares it.
            generation["tokens"].pop("layers", None)
    return plain
